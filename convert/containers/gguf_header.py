"""The header of a GGUF file, read with bounds: metadata, and where each tensor lies.

Format: "GGUF", a version, two counts; metadata as key, type, value; tensors as name, dimensions (the fastest first), type and
offset; then the data, aligned (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). All numbers are little-endian.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from convert.containers.byte_ranges import ByteRanges
from qsjax.errors import CheckpointError
from qsjax.untrusted import shown

Value = bool | int | float | str | tuple[int | float | bool, ...]

_LARGEST = 64 << 20
"""Bytes of a header; that of LLaMA-3 has 8 MB, nearly all of it the tokenizer."""
_MOST = 1 << 16
"""Tensors, and entries of metadata."""
_LONGEST_NAME = 1 << 10
_KEPT_TEXT = 1 << 10
_KEPT_NUMBERS = 16
_MOST_DIMENSIONS = 8
_ALIGNMENTS = tuple(1 << power for power in range(3, 17))
_BLOCK = 1 << 16
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9


class Stored(NamedTuple):
    """A tensor as the header has it.

    Attributes:
        shape: as PyTorch counts, the slowest dimension first.
        type: number of its type.
        offset: bytes from the beginning of the data.
    """

    shape: tuple[int, ...]
    type: int
    offset: int


class Header(NamedTuple):
    """What a file says before its data.

    Attributes:
        fields: metadata; long lists (a tokenizer's) are left out, long texts cut.
        tensors: in the order of the file.
        data: where the data begin, in bytes.
        alignment: of every tensor, in bytes.
    """

    fields: Mapping[str, Value]
    tensors: Mapping[str, Stored]
    data: int
    alignment: int


def read_header(file: ByteRanges) -> Header:
    """Read and check all that stands before the data.

    Raises:
        CheckpointError: it is no GGUF file of version 3, is truncated, or says what cannot be.
    """
    if file.size < 4 or (magic := file.raw(0, 4)) != b"GGUF":
        found = f"begins with {shown(magic)}" if file.size >= 4 else f"has {file.size} bytes"
        raise CheckpointError(f"{file.path}: is no GGUF file, it {found}; download it again")
    cursor = _Cursor(file, 4)
    version = cursor.number("I")
    if version != 3:
        kind = "big-endian" if version == 3 << 24 else f"of version {version}"
        raise CheckpointError(
            f"{file.path}: is a GGUF file {kind}, and little-endian ones of version 3 are read; get one that a current llama.cpp has written"
        )
    tensors, fields = cursor.count("tensors"), cursor.count("entries of metadata")
    metadata = _fields(cursor, fields)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in _ALIGNMENTS:
        raise cursor.fault(f"aligns its data to {shown(alignment)} bytes, no power of two from 8")
    stored: dict[str, Stored] = {}
    for _ in range(tensors):
        name, tensor = _tensor(cursor)
        if name in stored:
            raise cursor.fault(f"holds {shown(name)} twice")
        stored[name] = tensor
    data = -(-cursor.position // alignment) * alignment
    return Header(metadata, stored, data, alignment)


class _Cursor:
    """A place in the header; every step is checked against the file before it is made."""

    def __init__(self, file: ByteRanges, position: int) -> None:
        self.position = position
        self._file, self._block, self._begin = file, b"", 0

    def skip(self, count: int) -> None:
        end = self.position + count
        if end > self._file.size:
            raise self.fault(f"is truncated, its header goes on after its {self._file.size} bytes")
        if end > _LARGEST:
            raise self.fault(f"has a header of more than {_LARGEST} bytes")
        self.position = end

    def take(self, count: int) -> bytes:
        begin = self.position
        self.skip(count)
        if begin + count > self._begin + len(self._block) or begin < self._begin:
            size = min(max(count, _BLOCK), self._file.size - begin)
            self._block, self._begin = self._file.raw(begin, size), begin
        return self._block[begin - self._begin : begin - self._begin + count]

    def number(self, code: str) -> int | float | bool:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def natural(self, code: str) -> int:
        return int.from_bytes(self.take(struct.calcsize(f"<{code}")), "little")

    def count(self, what: str) -> int:
        count = self.natural("Q")
        if count > _MOST:
            raise self.fault(f"announces {count} {what}, more than {_MOST}")
        return count

    def name(self, what: str) -> str:
        length = self.natural("Q")
        if not 0 < length <= _LONGEST_NAME:
            raise self.fault(f"has {what} of {length} bytes")
        data = self.take(length)
        text = data.decode("utf-8", "replace")
        if not text.isprintable() or "\ufffd" in text:
            raise self.fault(f"has {what} that cannot be printed, {shown(text)}")
        return text

    def text(self) -> str:
        length = self.natural("Q")
        kept = self.take(min(length, _KEPT_TEXT))
        self.skip(length - len(kept))
        return kept.decode("utf-8", "replace")

    def fault(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._file.path}: {what}; download it again")


def _fields(cursor: _Cursor, count: int) -> dict[str, Value]:
    fields: dict[str, Value] = {}
    keys: set[str] = set()
    for _ in range(count):
        key = cursor.name("a key")
        if key in keys:
            raise cursor.fault(f"says {shown(key)} twice")
        keys.add(key)
        if (value := _value(cursor, cursor.natural("I"), key)) is not None:
            fields[key] = value
    return fields


def _value(cursor: _Cursor, kind: int, key: str) -> Value | None:
    """A value; None for a list that is not kept."""
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        raise cursor.fault(f"has a value of the unknown type {kind} for {shown(key)}")
    inner, length = cursor.natural("I"), cursor.natural("Q")
    if inner == _STRING:
        for _ in range(length):  # each has 8 bytes at least, and the header is bounded
            cursor.skip(cursor.natural("Q"))
        return None
    if inner not in _SCALARS:
        raise cursor.fault(f"has a list of the unknown type {inner} for {shown(key)}")
    if length > _KEPT_NUMBERS:
        cursor.skip(length * struct.calcsize(f"<{_SCALARS[inner]}"))
        return None
    return tuple(cursor.number(_SCALARS[inner]) for _ in range(length))


def _tensor(cursor: _Cursor) -> tuple[str, Stored]:
    name = cursor.name("a tensor's name")
    dimensions = cursor.natural("I")
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.fault(f"has {shown(name)} of {dimensions} dimensions")
    shape = tuple(cursor.natural("Q") for _ in range(dimensions))[::-1]
    return name, Stored(shape, cursor.natural("I"), cursor.natural("Q"))
