"""The zip archive that `torch.save` writes, checked before torch sees it.

Records are stored, not compressed, so a tensor's bytes lie in the file as they are. A record that claims
otherwise (compressed, doubled, reaching outside the file) is refused: what torch allocates for a record
follows the archive's own figures.
"""

import io
import os
import struct
import zipfile

from convert.containers.byte_ranges import ByteRanges
from qsjax.errors import CheckpointError

_LARGEST_DIRECTORY = 256 << 20
_LARGEST_PICKLE = 64 << 20  # 1264 tensors need about 0.2 MB
_LOCAL_HEADER = 30
# What zipfile raises for malformed archives, also for sizes and offsets that overflow its integers.
_ZIP_FAULTS = (
    *(zipfile.BadZipFile, NotImplementedError, struct.error, EOFError),
    *(OSError, ValueError, OverflowError, IndexError),
)


def storage_records(file: ByteRanges) -> dict[int, int]:
    """Where tensor data lies: offset in the file -> size in bytes, for each `data/` record.

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
        return {
            _data_offset(file, record): record.file_size
            for record, name in zip(records, names, strict=True)
            if name.startswith("data/")
        }
    except _ZIP_FAULTS as error:
        raise CheckpointError(
            f"{file.path}: is truncated or no checkpoint of torch.save ({error}); it has {file.size} bytes, compare with its source and download it again"
        ) from error


def _check(file: ByteRanges, records: list[zipfile.ZipInfo], names: list[str]) -> None:
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{file.path}: is a TorchScript archive, a program and not only weights; save its state_dict() with torch.save"
        )
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise CheckpointError(
                f"{file.path}: record {record.filename[:80]!r} is compressed or encrypted, which torch.save never does; save the checkpoint again"
            )
        if (
            record.compress_size != record.file_size
            or record.header_offset < 0  # zipfile counts from where it believes the archive begins
            or record.header_offset + _LOCAL_HEADER + record.file_size > file.size
        ):
            raise CheckpointError(
                f"{file.path}: record {record.filename[:80]!r} of {record.file_size} bytes does not fit into the file of {file.size} bytes; download it again"
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
    if sizes["data.pkl"] > _LARGEST_PICKLE:
        raise CheckpointError(
            f"{file.path}: has {sizes['data.pkl']} bytes of pickle, more than weights need; save only the state dict"
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
        raise zipfile.BadZipFile(f"record {record.filename[:80]!r} has no header")
    name, extra = struct.unpack_from("<HH", header, 26)
    offset = record.header_offset + _LOCAL_HEADER + name + extra
    if offset + record.file_size > file.size:
        raise zipfile.BadZipFile(f"record {record.filename[:80]!r} reaches outside the file")
    return offset


class _BoundedReads(io.FileIO):
    """A file that refuses to read more at once than a directory of records can need."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {wanted} bytes")
        return super().read(wanted)
