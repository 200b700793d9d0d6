"""One safetensors file: the header is checked against the file, then tensors are read by offset.

Format: 8 bytes little-endian header length, a JSON header name -> {dtype, shape, data_offsets}, then the
data, which the tensors must cover exactly, without holes or overlaps (https://huggingface.co/docs/safetensors).
"""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from convert.containers.byte_ranges import ByteRanges
from convert.containers.source import Source, TensorInfo, begin_of
from qsjax.errors import CheckpointError
from qsjax.untrusted import parse_object, shown
from qsjax.untrusted.files import LARGE

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
METADATA = "__metadata__"


class SafetensorsFile(Source):
    """A safetensors file, also of float8 tensors, as it is.

    Raises:
        InputError: the file cannot be opened.
        CheckpointError: it is truncated, or its header contradicts itself or the file.
    """

    container = "safetensors"

    def __init__(self, path: Path) -> None:
        self.files = (path,)
        self._file = ByteRanges(path)
        try:
            self.tensors, self._offsets, self.metadata = parse_header(
                path, self._file.size, self._file.raw
            )
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        info = self.tensors[name]
        offset, shape = begin_of(info, rows)
        return self._file.array(self._offsets[name] + offset, shape, info.dtype)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def parse_header(
    path: Path, size: int, raw: Callable[[int, int], bytes]
) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    """The tensors of a file, where each begins, and its metadata.

    Args:
        path: of the file, for messages.
        size: of the file, in bytes.
        raw: gives so many bytes from an offset on.

    Raises:
        CheckpointError: the header contradicts itself or the size.
    """
    data = header_end(path, size, raw(0, min(size, 8)))
    header = parse_object(raw(8, data - 8), f"{path}: the header")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: {METADATA} is not a table of strings; write the file again")
    tensors: dict[str, TensorInfo] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name, entry in header.items():
        tensors[name], spans[name] = _entry(path, name, entry)
    edge, previous = 0, "the header"
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != edge:
            fault = "a hole" if begin > edge else "an overlap"
            raise CheckpointError(
                f"{path}: {fault} between {shown(previous)}, which ends at byte {edge} of the data, and {shown(name)}, which begins at {shown(begin)}; write the file again"
            )
        edge, previous = end, name
    expected = data + edge
    if size != expected:
        fault = "is truncated" if size < expected else "has bytes after its last tensor"
        raise CheckpointError(
            f"{path}: {fault}, expected {expected} bytes, found {size}; download it again"
        )
    return tensors, {name: data + begin for name, (begin, _) in spans.items()}, metadata


def header_end(path: Path | str, size: int, begin: bytes) -> int:
    """Where the header of a file ends, in bytes.

    Args:
        path: of the file, for messages.
        size: of the file, in bytes.
        begin: its first 8 bytes, or all of a smaller one.

    Raises:
        CheckpointError: there can be no such header.
    """
    if size < 8:
        raise CheckpointError(
            f"{path}: is no safetensors file, it has only {size} bytes; download it again"
        )
    length = int.from_bytes(begin[:8], "little")
    if length > LARGE:
        raise CheckpointError(
            f"{path}: is no safetensors file (its header would have {length} bytes, {LARGE} are allowed); download it again"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path}: is truncated, expected at least {8 + length} bytes for its header, found {size}; download it again"
        )
    return 8 + length


def _entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    """One header entry, checked in itself; Python integers do not overflow, so products are exact."""
    if not name.isprintable():
        raise CheckpointError(
            f"{path}: a tensor has the unprintable name {shown(name)}; write the file again"
        )
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {shown(name)} has dtype {shown(dtype, 40)}, known are {', '.join(DTYPES)}; save it in one of these"
        )
    info = TensorInfo(_naturals(shape) or (), DTYPES[dtype])
    if _naturals(shape) is None or not info.possible:
        raise CheckpointError(
            f"{path}: tensor {shown(name)} has the impossible shape {shown(shape)}; write the file again"
        )
    ends = _naturals(span)
    if ends is None or len(ends) != 2 or ends[1] - ends[0] != info.nbytes:
        raise CheckpointError(
            f"{path}: tensor {shown(name)} of shape {shown(shape)} and {dtype} needs {info.nbytes} bytes, its offsets are {shown(span)}; write the file again"
        )
    return info, (ends[0], ends[1])


def _naturals(values: object) -> tuple[int, ...] | None:
    """The list as a tuple if it holds sizes only; bool is an int in Python, and not a size."""
    if not isinstance(values, list) or any(type(v) is not int or v < 0 for v in values):
        return None
    return tuple(values)
