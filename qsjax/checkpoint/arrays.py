"""Arrays in memory: where they can stay, and whether they are what was written."""

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from qsjax.checkpoint.manifest import Manifest
from qsjax.errors import CheckpointError

_ALIGNMENT = 64


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
        state.update(bytes_of(np.ascontiguousarray(part)))
    if state.hexdigest() != manifest.component(component).items[item][leaf]["sha256"]:
        raise CheckpointError(
            f"{manifest.directory}: item {component}/{item}: {leaf} is not what was written (its sha256 differs);"
            f" get the checkpoint again, or convert it again"
        )
    _verified.add(key)


_verified: set[tuple[Path, str, str, str, str]] = set()
"""What this process has compared."""


def bytes_of(array: np.ndarray) -> memoryview:
    """The memory of an array that is contiguous."""
    return array.reshape(-1).view(np.uint8).data


def forget_verified() -> None:
    """Compare everything again that is loaded from now on."""
    _verified.clear()
