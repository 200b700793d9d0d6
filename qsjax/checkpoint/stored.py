"""Arrays of a stored item: what its files say of themselves is compared with the manifest before they are read.

An array is cut into chunks. Plain chunks, which checkpoints of this version have, are read straight into their place;
compressed ones of older checkpoints go by TensorStore, which stops where a chunk expands to more than it should have.
"""

import hashlib
import itertools
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  # NumPy learns of bfloat16
import numpy as np
import tensorstore as ts

from qsjax.checkpoint.manifest import Manifest
from qsjax.checkpoint.schema import BYTES, Leaf, leaf_bytes
from qsjax.checkpoint.values import Value, count_chunks, find_files, find_values
from qsjax.errors import CheckpointError, QsjaxError
from qsjax.untrusted import inside, parse_object, shown

_ALIGNMENT = 64
_METADATA = 1 << 16
_MOST_CHUNKS = 1 << 16
_SLACK = 1 << 28
"""Bytes of arrays that need not be in the files: chunks of zeros are not written."""
_RATIO = 4
"""Weights hardly shrink: what expands to more than this is none."""
_ABSENT = (1 << 64) - 1
_PLAIN = {"name": "bytes", "configuration": {"endian": "little"}}
_NO_BYTES = frozenset({"bool", "int4", "uint4"})
"""Dtypes whose bytes in memory are not any bytes."""


class _Chunks(NamedTuple):
    """How plain chunks are stored.

    Attributes:
        outer: shape of what is one value.
        inner: shape of a chunk in it; equal to `outer` where a value is one chunk.
        indexed: whether a value ends with the places of its chunks.
    """

    outer: tuple[int, ...]
    inner: tuple[int, ...]
    indexed: bool


class StoredItem:
    """The arrays of one item on disk.

    Args:
        manifest: the checkpoint.
        component: of it.
        item: of the component.

    Raises:
        CheckpointError: a file is missing or damaged, or the files hold other arrays than the manifest says.
    """

    def __init__(self, manifest: Manifest, component: str, item: str) -> None:
        self._what = f"{manifest.directory}: item {component}/{item}"
        self._leaves = manifest.component(component).items[item]
        self._state = inside(manifest.directory, f"{component}/{item}/state", self._what)
        try:
            self._tree, self._values = find_values(self._state)
            self._compare()
        except QsjaxError:
            raise
        except Exception as error:  # TensorStore raises many kinds
            raise self._failure(error) from error

    def read(self, leaf: str) -> np.ndarray:
        """A whole array, in memory that a CPU device takes over as it is.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        spec = self._leaves[leaf]
        target = aligned(tuple(spec["shape"]), np.dtype(spec["dtype"]))
        if target.ndim == 0:
            target[...] = self._range(leaf, None, None)
        else:
            self._fill(leaf, target, 0)
        return target

    def blocks(self, leaf: str) -> Iterator[np.ndarray]:
        """The array's rows, some of them at a time.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        shape, chunk = self._leaves[leaf]["shape"], self._chunk[leaf]
        for start in range(0, shape[0], chunk[0]):
            yield self._rows(leaf, start, min(start + chunk[0], shape[0]))

    def take(self, leaf: str, numbers: np.ndarray) -> np.ndarray:
        """Rows by their numbers.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        if leaf in self._plain:
            return np.concatenate([self._rows(leaf, int(row), int(row) + 1) for row in numbers])
        try:
            return np.asarray(self._open(leaf)[numbers].read().result())
        except Exception as error:
            raise self._failure(error) from error

    def _rows(self, leaf: str, start: int, stop: int) -> np.ndarray:
        spec = self._leaves[leaf]
        target = np.empty((stop - start, *spec["shape"][1:]), np.dtype(spec["dtype"]))
        self._fill(leaf, target, start)
        return target

    def _fill(self, leaf: str, target: np.ndarray, start: int) -> None:
        try:
            if leaf in self._plain:
                self._fill_plain(leaf, target, start)
            else:
                target[...] = self._range(leaf, start, start + len(target))
        except Exception as error:
            raise self._failure(error) from error

    def _range(self, leaf: str, start: int | None, stop: int | None) -> np.ndarray:
        try:
            store = self._open(leaf)
            return np.asarray((store if start is None else store[start:stop]).read().result())
        except Exception as error:
            raise self._failure(error) from error

    def _fill_plain(self, leaf: str, target: np.ndarray, start: int) -> None:
        """Rows from `start` on, chunk by chunk."""
        chunks, shape = self._plain[leaf], tuple(self._leaves[leaf]["shape"])
        stop, itemsize = start + len(target), target.dtype.itemsize
        row_bytes = math.prod(chunks.inner[1:]) * itemsize
        for origin, value, offset in self._places(leaf, chunks, itemsize, start, stop):
            low, high = max(start, origin[0]), min(stop, origin[0] + chunks.inner[0])
            ends = [min(o + c, n) for o, c, n in zip(origin, chunks.inner, shape, strict=True)]
            columns = tuple(slice(o, e) for o, e in zip(origin[1:], ends[1:], strict=True))
            region = target[(slice(low - start, high - start), *columns)]
            if value is None:
                region[...] = 0
                continue
            offset += (low - origin[0]) * row_bytes
            if chunks.inner[1:] == shape[1:]:
                value.read_into(_bytes(region), offset)
                continue
            rows = np.empty((high - low, *chunks.inner[1:]), target.dtype)
            value.read_into(_bytes(rows), offset)
            region[...] = rows[(slice(None), *(slice(c.stop - c.start) for c in columns))]

    def _places(
        self, leaf: str, chunks: _Chunks, itemsize: int, start: int, stop: int
    ) -> Iterator[tuple[tuple[int, ...], Value | None, int]]:
        """Of each chunk with such rows: where it begins in the array, the value that holds it (None for zeros), and its offset there."""
        shape, outer, inner, indexed = tuple(self._leaves[leaf]["shape"]), *chunks
        nbytes = math.prod(inner) * itemsize
        inside_of = [range(-(-o // i)) for o, i in zip(outer, inner, strict=True)]
        counts = [range(-(-n // o)) for n, o in zip(shape, outer, strict=True)]
        counts[0] = range(start // outer[0], -(-stop // outer[0]))
        for position in itertools.product(*counts):
            key = "/".join([leaf, "c", *map(str, position)])
            value = self._values.get(key)
            index = _read_index(value, inside_of) if value is not None and indexed else None
            for number, part in enumerate(itertools.product(*inside_of)):
                origin = tuple(
                    p * o + k * i for p, o, k, i in zip(position, outer, part, inner, strict=True)
                )
                past = any(o >= n for o, n in zip(origin, shape, strict=True))
                if past or origin[0] >= stop or origin[0] + inner[0] <= start:
                    continue
                offset, length = (0, nbytes) if index is None else index[number]
                absent = value is None or (offset, length) == (_ABSENT, _ABSENT)
                if not absent and length != nbytes:
                    raise ValueError(f"a chunk of {leaf} has {length} bytes instead of {nbytes}")
                yield origin, None if absent else value, 0 if absent else offset

    def _compare(self) -> None:
        """Compare what the files say of the arrays with the manifest; nothing of an array is read."""
        self._plain: dict[str, _Chunks] = {}
        self._chunk: dict[str, tuple[int, ...]] = {}
        named = {key.split("/")[0] for key in self._values if "/" in key}
        others = sorted(
            named - self._leaves.keys() - {"array_metadatas"}
        )  # what Orbax says of them
        if others:
            raise ValueError(f"it holds {shown(others[0])}, which the manifest does not list")
        require_stored(
            self._what, self._leaves.values(), sum(value.length for value in self._values.values())
        )
        for name, spec in self._leaves.items():
            path, kind = f"{name}/zarr.json", "zarr3"
            if path not in self._values:
                path, kind = f"{name}/.zarray", "zarr"
            if path not in self._values:
                raise ValueError(f"{name} is missing")
            metadata = parse_object(self._values[path].read(_METADATA), f"{self._what}: {name}")
            if metadata.get("shape") != spec["shape"]:
                raise ValueError(
                    f"{name} has the shape {shown(metadata.get('shape'))} in its files"
                )
            if kind == "zarr3" and (plain := _plain_chunks(metadata, spec)) is not None:
                self._plain[name], self._chunk[name] = plain, plain.inner
                outer = plain.outer
            else:
                outer, self._chunk[name] = self._opened_chunks(name, spec)
            _require_chunks(name, spec, outer)
            _require_chunks(name, spec, self._chunk[name])

    def _opened_chunks(self, name: str, spec: Leaf) -> tuple[tuple[int, ...], tuple[int, ...]]:
        store = self._open(name)
        if store.dtype.numpy_dtype != np.dtype(spec["dtype"]) or list(store.shape) != spec["shape"]:
            raise ValueError(f"{name} has the dtype {store.dtype.name} in its files")
        layout, codec = store.chunk_layout, store.codec
        if unknown := _codecs(codec.to_json() if codec is not None else {}) - _KNOWN_CODECS:
            raise ValueError(f"{name} is compressed by {shown(min(unknown))}, which is not known")
        outer, inner = layout.write_chunk.shape or (), layout.read_chunk.shape or ()
        return tuple(size or 0 for size in outer), tuple(size or 0 for size in inner)

    def _open(self, leaf: str) -> ts.TensorStore:
        """The array as TensorStore finds it."""
        files: dict[str, Any] = {"driver": "file", "path": f"{self._state.absolute()}/"}
        if self._tree:
            store = {"driver": "ocdbt", "base": files, "path": f"{leaf}/"}
        else:
            store = {**files, "path": f"{files['path']}{leaf}/"}
        kind = "zarr3" if f"{leaf}/zarr.json" in self._values else "zarr"
        return ts.open({"driver": kind, "kvstore": store}, read=True, open=True).result()

    def _failure(self, error: Exception) -> CheckpointError:
        if isinstance(error, CheckpointError):
            return error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        reason = reason if reason.isprintable() else ascii(reason)
        return CheckpointError(
            f"{self._what} cannot be loaded ({reason}); get the checkpoint again, or convert it again"
        )


_KNOWN_CODECS = frozenset({"bytes", "zstd", "crc32c", "sharding_indexed"})


def _codecs(codec: Mapping[str, Any]) -> set[str]:
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


def _plain_chunks(metadata: Mapping[str, Any], spec: Leaf) -> _Chunks | None:
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
        _require_chunks("an array", spec, chunk)
    return _Chunks(tuple(outer), tuple(inner), indexed)


def _require_chunks(name: str, spec: Leaf, chunk: Any) -> None:
    """Refuse chunks that are larger than the array, or of which there are far too many."""
    shape = tuple(spec["shape"])
    if not isinstance(chunk, list | tuple) or len(chunk) != len(shape):
        raise ValueError(f"{name} has chunks of the shape {shown(chunk)}")
    for size, length in zip(chunk, shape, strict=True):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= max(length, 1):
            raise ValueError(f"{name} has chunks of the shape {shown(chunk)}")
    if count_chunks(shape, tuple(chunk)) > _MOST_CHUNKS:
        raise ValueError(f"{name} has more than {_MOST_CHUNKS} chunks")


def _read_index(value: Value, inside_of: list[range]) -> list[tuple[int, int]]:
    """Where the chunks of a value lie in it: offset and length, or twice `_ABSENT`."""
    count = math.prod(len(numbers) for numbers in inside_of)
    index = bytearray(16 * count)
    value.read_into(memoryview(index), value.length - len(index) - 4)
    return [pair for pair in struct.iter_unpack("<QQ", index)]


def require_stored(what: str, leaves: Any, stored: int) -> None:
    """Refuse arrays that are far larger than their files.

    Args:
        what: has them, for the message.
        leaves: their specifications.
        stored: bytes of the files.

    Raises:
        CheckpointError: they cannot be in these files.
    """
    needed = sum(map(leaf_bytes, leaves))
    if needed > _RATIO * stored + _SLACK:
        raise CheckpointError(
            f"{what} should have {needed} bytes of weights, and its files have {stored}; get the checkpoint again, or convert it again"
        )


def require_files(manifest: Manifest, component: str) -> None:
    """Refuse a component whose weights are far larger than its files, before memory is taken for them.

    Raises:
        CheckpointError: so, or a folder is missing, a link is among the files.
    """
    what = f"{manifest.directory}: {component}"
    folder = inside(manifest.directory, component, what)
    try:
        stored = sum(find_files(folder).values())
    except OSError as error:
        raise CheckpointError(
            f"{what}: cannot be read ({error.strerror}); convert the checkpoint again"
        ) from error
    require_stored(what, [spec for *_, spec in manifest.leaves(component)], stored)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array for values to come that `jax.device_put` takes over without a copy on a CPU.

    XLA wants `_ALIGNMENT` bytes. A copy doubles a parameter's memory for a moment, and new memory costs as much processor time
    as reading the file does.
    """
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    room = np.empty(nbytes + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    return room[first : first + nbytes].view(dtype).reshape(shape)


def require_digest(
    manifest: Manifest,
    component: str,
    item: str,
    leaf: str,
    parts: Callable[[], Iterable[np.ndarray]],
) -> None:
    """Compare an array with its sha256 in the manifest; once a process for the same manifest.

    Args:
        manifest: the checkpoint.
        component, item, leaf: of it.
        parts: gives the array, or its rows one after the other.

    Raises:
        CheckpointError: they differ.
    """
    key = (manifest.directory.absolute(), manifest.digest, component, item, leaf)
    if key in _verified:
        return
    state = hashlib.sha256()
    for part in parts():
        state.update(_bytes(np.ascontiguousarray(part)))
    if state.hexdigest() != manifest.component(component).items[item][leaf]["sha256"]:
        raise CheckpointError(
            f"{manifest.directory}: item {component}/{item}: {leaf} is not what was written (its sha256 differs);"
            f" get the checkpoint again, or convert it again"
        )
    _verified.add(key)


_verified: set[tuple[Path, str, str, str, str]] = set()
"""What this process has compared."""


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of an array that is contiguous."""
    return array.reshape(-1).view(np.uint8).data
