"""The zip archive that `torch.save` writes, checked before torch sees it.

Records are stored, not compressed, so a tensor's bytes lie in the file as they are. A record that claims
otherwise (compressed, doubled, reaching outside the file) is refused: what torch allocates for a record
follows the archive's own figures.
"""

import io
import os
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from convert.containers.byte_ranges import ByteRanges
from convert.containers.torch_pickle import LARGEST
from qsjax.errors import CheckpointError
from qsjax.untrusted import shown

_BLOCK = 1 << 20

_LARGEST_DIRECTORY = 16 << 20  # a hundred thousand records
_LARGEST_NOTE = 4096  # bytes of a record that is neither data nor pickle, which torch reads whole: a version, an order of bytes
_LOCAL_HEADER = 30
_END, _END_64 = 22, 56 + 20
# What zipfile raises for malformed archives, also for sizes and offsets that overflow its integers.
_ZIP_FAULTS = (
    *(zipfile.BadZipFile, NotImplementedError, struct.error, EOFError),
    *(OSError, ValueError, OverflowError, IndexError),
)


class Record(NamedTuple):
    """A record of the archive.

    Attributes:
        offset: of its first byte in the file.
        size: bytes.
        crc: CRC-32 of them; None if it was written without.
    """

    offset: int
    size: int
    crc: int | None


def read_archive(file: ByteRanges) -> tuple[bytes, dict[int, Record]]:
    """The pickle, with its CRC-32 checked, and the records of tensor data by their offset in the file.

    Raises:
        CheckpointError: not an archive of `torch.save`, damaged, or an old one that cannot be read lazily.
    """
    start = file.raw(0, min(4, file.size))
    if start[:2] != b"PK":
        kind = (
            "a checkpoint in torch's old format"
            if start[:1] == b"\x80"
            else "no checkpoint of torch.save"
        )
        raise CheckpointError(
            f"{file.path}: is {kind}, which cannot be read tensor by tensor; re-save it with a current torch: torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    try:
        with zipfile.ZipFile(_BoundedReads(file.descriptor, closefd=False)) as archive:
            records = archive.infolist()
        names = [record.filename.partition("/")[2] for record in records]
        _check(file, records, names)
        _check_begin(file, archive.start_dir)
        # torch can leave a checksum out: then it is 0.
        found = {
            name: Record(_data_offset(file, record), record.file_size, record.CRC or None)
            for record, name in zip(records, names, strict=True)
        }
    except _ZIP_FAULTS as error:
        raise CheckpointError(
            f"{file.path}: is truncated or no checkpoint of torch.save ({shown(str(error), 120)}); it has {file.size} bytes, compare with its source and download it again"
        ) from error
    pickle = found["data.pkl"]
    program = file.raw(pickle.offset, pickle.size)
    check_crc(file, pickle, np.frombuffer(program, np.uint8))
    return program, {
        record.offset: record for name, record in found.items() if name.startswith("data/")
    }


def _check_begin(file: ByteRanges, begin: int) -> None:
    """Refuse an archive that another reader might begin elsewhere: torch would then read what was not looked at here.

    `begin` is where `zipfile` found the directory, going back from its end; the archive says so itself, in its last bytes.
    """
    last = file.raw(max(0, file.size - _END - _END_64), min(file.size, _END + _END_64))
    (said,) = struct.unpack_from("<L", last, len(last) - _END + 16)
    if said == 0xFFFFFFFF or last[:4] == b"PK\x06\x06":
        (said,) = struct.unpack_from("<Q", last, 48)
    if last[len(last) - _END :][:4] != b"PK\x05\x06" or said != begin:
        raise zipfile.BadZipFile("its directory is not where it says")


def check_crc(file: ByteRanges, record: Record, content: np.ndarray | None = None) -> None:
    """Compare a record with its CRC-32.

    Args:
        file: it is in.
        record: to check.
        content: all its bytes, if they have been read; None reads them, a block at a time.

    Raises:
        CheckpointError: they differ.
    """
    if record.crc is None:
        return
    found = 0
    if content is not None:
        found = zlib.crc32(content.reshape(-1).view(np.uint8).data)
    else:
        for start in range(0, record.size, _BLOCK):
            found = zlib.crc32(
                file.raw(record.offset + start, min(_BLOCK, record.size - start)), found
            )
    if found != record.crc:
        raise CheckpointError(
            f"{file.path}: the record at byte {record.offset} of {record.size} bytes is damaged (its CRC-32 is not the one "
            f"written down); download it again"
        )


def _check(file: ByteRanges, records: list[zipfile.ZipInfo], names: list[str]) -> None:
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{file.path}: is a TorchScript archive, a program and not only weights; save its state_dict() with torch.save"
        )
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise CheckpointError(
                f"{file.path}: record {shown(record.filename)} is compressed or encrypted, which torch.save never does; save the checkpoint again"
            )
        if (
            record.compress_size != record.file_size
            or record.header_offset < 0  # zipfile counts from where it believes the archive begins
            or record.header_offset + _LOCAL_HEADER + record.file_size > file.size
        ):
            raise CheckpointError(
                f"{file.path}: record {shown(record.filename)} of {record.file_size} bytes does not fit into the file of {file.size} bytes; download it again"
            )
    if len(set(names)) != len(names) or len({r.filename.partition("/")[0] for r in records}) > 1:
        raise CheckpointError(
            f"{file.path}: is no checkpoint of torch.save, records occur twice; save it again"
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{file.path}: is a zip archive, but no checkpoint of torch.save (no data.pkl); name the weights file"
        )
    sizes = dict(zip(names, (record.file_size for record in records), strict=True))
    if sizes["data.pkl"] > LARGEST:
        raise CheckpointError(
            f"{file.path}: has {sizes['data.pkl']} bytes of pickle, more than weights need; save only the state dict"
        )
    for name, size in sizes.items():
        if size > _LARGEST_NOTE and name != "data.pkl" and not name.startswith("data/"):
            raise CheckpointError(
                f"{file.path}: record {shown(name)} has {size} bytes, which torch.save never writes; save only the state dict"
            )
    if "byteorder" in names:
        record = records[names.index("byteorder")]
        order = file.raw(_data_offset(file, record), min(record.file_size, 16))
        if order != b"little":
            raise CheckpointError(
                f"{file.path}: holds {order!r} endian data, only little endian is read; save it again on a common machine"
            )


def _data_offset(file: ByteRanges, record: zipfile.ZipInfo) -> int:
    """The first byte of a record's data: after its local header, which alone says how long it is."""
    header = file.raw(record.header_offset, _LOCAL_HEADER)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"record {shown(record.filename)} has no header")
    name, extra = struct.unpack_from("<HH", header, 26)
    offset = record.header_offset + _LOCAL_HEADER + name + extra
    if offset + record.file_size > file.size:
        raise zipfile.BadZipFile(f"record {shown(record.filename)} reaches outside the file")
    return offset


class _BoundedReads(io.FileIO):
    """A file that refuses to read more at once than a directory of records can need."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {wanted} bytes")
        return super().read(wanted)
