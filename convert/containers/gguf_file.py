"""One GGUF file: the header is checked against the file, then tensors are read and dequantized block by block."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from convert.containers.byte_ranges import ByteRanges
from convert.containers.float8 import BFLOAT16
from convert.containers.gguf_header import Header, Stored, Value, read_header
from convert.containers.gguf_types import BlockType, block_type, dequantize
from convert.containers.source import Source, TensorInfo, begin_of
from qsjax.errors import CheckpointError
from qsjax.untrusted import shown

_CHUNK = 1 << 19
"""Elements that are dequantized at once; the indices of some types are larger than their results."""
_ORIGINAL = "comfy.gguf.orig_shape."
"""Before a tensor's name: the shape that it had before it was flattened, for GGML knows four dimensions."""


class GgufFile(Source):
    """A GGUF file: quantized tensors read as float32, and are kept as bfloat16; the others are as they are.

    Attributes:
        fields: the file's metadata; see `convert.containers.gguf_header.Header`.

    Raises:
        InputError: the file cannot be opened.
        CheckpointError: it is damaged, one part of several, or of a type that cannot be read.
    """

    fields: Mapping[str, Value]

    def __init__(self, path: Path) -> None:
        self.files = (path,)
        self._file = ByteRanges(path)
        try:
            header = read_header(self._file)
            self.fields = header.fields
            _require_all_parts(path, header)
            self._types = {
                name: block_type(tensor.type, f"{path}: tensor {shown(name)}")
                for name, tensor in header.tensors.items()
            }
            self.tensors = {
                name: _info(path, name, tensor, self._types[name], header)
                for name, tensor in header.tensors.items()
            }
            self._offsets = _offsets(self._file, header, self._sizes())
            quantized = sorted({kind.name for kind in self._types.values() if kind.plain is None})
            self.container = f"gguf ({', '.join(quantized)})" if quantized else "gguf"
        except BaseException:
            self._file.close()
            raise

    def stored_dtype(self, name: str) -> np.dtype:
        """See `Source.stored_dtype`."""
        return self._types[name].plain or BFLOAT16

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        info, kind = self.tensors[name], self._types[name]
        begin, shape = begin_of(info, rows)
        if kind.plain is not None:
            return self._file.array(self._offsets[name] + begin, shape, info.dtype)
        result = np.empty(shape, info.dtype)
        flat, first = result.reshape(-1), begin // info.dtype.itemsize
        step = max(1, _CHUNK // kind.elements) * kind.elements
        edge = first
        while edge < first + flat.size:
            # Whole blocks; rows of a tensor that was flattened may begin and end inside one.
            block = edge // kind.elements
            stop = min(block * kind.elements + step, first + flat.size)
            count = -(-stop // kind.elements) - block
            raw = self._file.array(
                self._offsets[name] + block * kind.nbytes,
                (count * kind.nbytes,),
                np.dtype(np.uint8),
            )
            inside = edge - block * kind.elements
            flat[edge - first : stop - first] = dequantize(raw, kind)[inside:][: stop - edge]
            edge = stop
        return result

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _sizes(self) -> dict[str, int]:
        """Bytes of every tensor in the file."""
        return {
            name: prod(info.shape) // self._types[name].elements * self._types[name].nbytes
            for name, info in self.tensors.items()
        }


def _require_all_parts(path: Path, header: Header) -> None:
    parts = header.fields.get("split.count", 1)
    if parts not in (0, 1):
        raise CheckpointError(
            f"{path}: is one of {shown(parts)} parts; join them with `llama-gguf-split --merge` and name the result"
        )


def _info(path: Path, name: str, tensor: Stored, kind: BlockType, header: Header) -> TensorInfo:
    """Shape and dtype of a tensor, checked in themselves; Python integers do not overflow, so products are exact."""
    dtype = kind.plain or np.dtype(np.float32)
    length = tensor.shape[-1] if tensor.shape else 1
    if not TensorInfo(tensor.shape, dtype).possible or length % kind.elements:
        raise CheckpointError(
            f"{path}: tensor {shown(name)} of {kind.name} has the impossible shape {shown(list(tensor.shape))}; download it again"
        )
    original = header.fields.get(_ORIGINAL + name, tensor.shape)
    sizes = original if isinstance(original, tuple) else ()
    info = TensorInfo(tuple(size for size in sizes if type(size) is int and size >= 0), dtype)
    if info.shape != original or not info.possible or prod(info.shape) != prod(tensor.shape):
        raise CheckpointError(
            f"{path}: tensor {shown(name)} of shape {shown(list(tensor.shape))} has the original shape {shown(original)}, which cannot be; download it again"
        )
    return info


def _offsets(file: ByteRanges, header: Header, sizes: Mapping[str, int]) -> dict[str, int]:
    """Where each tensor begins in the file; together they cover the data, but for the padding before each."""
    edge, previous = 0, "the header"
    for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset != -(-edge // header.alignment) * header.alignment:
            raise CheckpointError(
                f"{file.path}: {shown(name)} begins at byte {tensor.offset} of the data, and {shown(previous)} before it ends at {edge}; download it again"
            )
        edge, previous = tensor.offset + sizes[name], name
    expected = header.data + edge
    if not expected <= file.size < expected + header.alignment:
        fault = "is truncated" if file.size < expected else "has bytes after its last tensor"
        raise CheckpointError(
            f"{file.path}: {fault}, expected {expected} bytes, found {file.size}; download it again"
        )
    return {name: header.data + tensor.offset for name, tensor in header.tensors.items()}
