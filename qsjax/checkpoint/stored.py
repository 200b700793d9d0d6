"""Arrays of a stored item: what its files say of themselves is compared with the manifest before they are read.

An array is cut into chunks. Plain chunks, which checkpoints of this version have, are read straight into their place;
compressed ones of older checkpoints go by TensorStore, which stops where a chunk expands to more than it should have.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy learns of bfloat16
import numpy as np
import tensorstore as ts

from qsjax.checkpoint.arrays import aligned, bytes_of
from qsjax.checkpoint.chunks import (
    ABSENT,
    KNOWN_CODECS,
    Chunks,
    codec_names,
    plain_chunks,
    read_index,
    require_chunks,
)
from qsjax.checkpoint.manifest import Manifest
from qsjax.checkpoint.schema import Leaf, leaf_bytes
from qsjax.checkpoint.values import Value, find_files, find_values
from qsjax.errors import CheckpointError, QsjaxError
from qsjax.untrusted import inside, parse_object, shown

_METADATA = 1 << 16
_SLACK = 1 << 28
"""Bytes of arrays that need not be in the files: chunks of zeros are not written."""
_RATIO = 4
"""Weights hardly shrink: what expands to more than this is none."""


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
                value.read_into(bytes_of(region), offset)
                continue
            rows = np.empty((high - low, *chunks.inner[1:]), target.dtype)
            value.read_into(bytes_of(rows), offset)
            region[...] = rows[(slice(None), *(slice(c.stop - c.start) for c in columns))]

    def _places(
        self, leaf: str, chunks: Chunks, itemsize: int, start: int, stop: int
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
            index = read_index(value, inside_of) if value is not None and indexed else None
            for number, part in enumerate(itertools.product(*inside_of)):
                origin = tuple(
                    p * o + k * i for p, o, k, i in zip(position, outer, part, inner, strict=True)
                )
                past = any(o >= n for o, n in zip(origin, shape, strict=True))
                if past or origin[0] >= stop or origin[0] + inner[0] <= start:
                    continue
                offset, length = (0, nbytes) if index is None else index[number]
                absent = value is None or (offset, length) == (ABSENT, ABSENT)
                if not absent and length != nbytes:
                    raise ValueError(f"a chunk of {leaf} has {length} bytes instead of {nbytes}")
                yield origin, None if absent else value, 0 if absent else offset

    def _compare(self) -> None:
        """Compare what the files say of the arrays with the manifest; nothing of an array is read."""
        self._plain: dict[str, Chunks] = {}
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
            if kind == "zarr3" and (plain := plain_chunks(metadata, spec)) is not None:
                self._plain[name], self._chunk[name] = plain, plain.inner
                outer = plain.outer
            else:
                outer, self._chunk[name] = self._opened_chunks(name, spec)
            require_chunks(name, spec, outer)
            require_chunks(name, spec, self._chunk[name])

    def _opened_chunks(self, name: str, spec: Leaf) -> tuple[tuple[int, ...], tuple[int, ...]]:
        store = self._open(name)
        if store.dtype.numpy_dtype != np.dtype(spec["dtype"]) or list(store.shape) != spec["shape"]:
            raise ValueError(f"{name} has the dtype {store.dtype.name} in its files")
        layout, codec = store.chunk_layout, store.codec
        if unknown := codec_names(codec.to_json() if codec is not None else {}) - KNOWN_CODECS:
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
