"""How an array is cut into chunks on disk, from its own metadata: compared with the manifest, and bounded."""

import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from qsjax.checkpoint.schema import BYTES, Leaf
from qsjax.checkpoint.values import Value, count_chunks
from qsjax.untrusted import shown

ABSENT = (1 << 64) - 1
"""Offset and length of a chunk of zeros, which is not written."""
KNOWN_CODECS = frozenset({"bytes", "zstd", "crc32c", "sharding_indexed"})
_MOST_CHUNKS = 1 << 16
_PLAIN = {"name": "bytes", "configuration": {"endian": "little"}}
_NO_BYTES = frozenset({"bool", "int4", "uint4"})
"""Dtypes whose bytes in memory are not any bytes."""


class Chunks(NamedTuple):
    """How plain chunks are stored.

    Attributes:
        outer: shape of what is one value.
        inner: shape of a chunk in it; equal to `outer` where a value is one chunk.
        indexed: whether a value ends with the places of its chunks.
    """

    outer: tuple[int, ...]
    inner: tuple[int, ...]
    indexed: bool


def plain_chunks(metadata: Mapping[str, Any], spec: Leaf) -> Chunks | None:
    """How the chunks of a zarr3 array lie, if they are plain bytes; None if TensorStore has to read it."""
    try:
        plain = (
            metadata["zarr_format"] == 3
            and metadata["data_type"] == spec["dtype"]
            and spec["dtype"] not in _NO_BYTES
            and spec["shape"]
            and metadata["fill_value"] == 0
            and metadata["chunk_grid"]["name"] == "regular"
            and metadata["chunk_key_encoding"] == {"name": "default"}
            and not metadata.get("storage_transformers")
        )
        outer = inner = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        codecs, indexed = metadata["codecs"], False
        if codecs[0]["name"] == "sharding_indexed":
            (sharding,) = codecs
            indexed, shards = True, sharding["configuration"]
            inner, codecs = shards["chunk_shape"], shards["codecs"]
            plain = plain and shards["index_codecs"] == [_PLAIN, {"name": "crc32c"}]
            plain = plain and shards.get("index_location", "end") == "end"
            plain = plain and not any(o % i for o, i in zip(outer, inner, strict=True))
        if BYTES[spec["dtype"]] == 1 and codecs == [{"name": "bytes"}]:
            codecs = [_PLAIN]
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None
    if not plain or codecs != [_PLAIN]:
        return None
    for chunk in (outer, inner):
        require_chunks("an array", spec, chunk)
    return Chunks(tuple(outer), tuple(inner), indexed)


def require_chunks(name: str, spec: Leaf, chunk: Any) -> None:
    """Refuse chunks that are larger than the array, or of which there are far too many."""
    shape = tuple(spec["shape"])
    if not isinstance(chunk, list | tuple) or len(chunk) != len(shape):
        raise ValueError(f"{name} has chunks of the shape {shown(chunk)}")
    for size, length in zip(chunk, shape, strict=True):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= max(length, 1):
            raise ValueError(f"{name} has chunks of the shape {shown(chunk)}")
    if count_chunks(shape, tuple(chunk)) > _MOST_CHUNKS:
        raise ValueError(f"{name} has more than {_MOST_CHUNKS} chunks")


def codec_names(codec: Mapping[str, Any]) -> set[str]:
    """All names of codecs in TensorStore's description."""
    if codec.get("driver") == "zarr":
        parts = [codec.get("compressor"), *(codec.get("filters") or [])]
        return {str(part.get("id")) for part in parts if part}
    names: set[str] = set()
    left = list(codec.get("codecs", []))
    while left:
        part = left.pop()
        names.add(str(part.get("name")))
        inner = part.get("configuration", {})
        left += inner.get("codecs", []) + inner.get("index_codecs", [])
    return names


def read_index(value: Value, inside_of: list[range]) -> list[tuple[int, int]]:
    """Where the chunks of a value lie in it: offset and length, or twice `ABSENT`."""
    count = math.prod(len(numbers) for numbers in inside_of)
    index = bytearray(16 * count)
    value.read_into(memoryview(index), value.length - len(index) - 4)
    return [pair for pair in struct.iter_unpack("<QQ", index)]
