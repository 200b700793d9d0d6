"""The activations between two blocks, of all samples: in memory, or in files where they do not fit."""

import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from qsjax.calibration.blocks import Tokens
from qsjax.disk import writing
from qsjax.errors import CheckpointError
from qsjax.untrusted.arrays import map_array

_PARTS = Tokens._fields
_NOT_KNOWN = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Errors of a file system that cannot be asked for room."""


class Boundary:
    """Tokens that enter a block, [S, N, D] and [S, L, D], read and written one sample at a time.

    Args:
        parts: both arrays, or memory-mapped files, as unsigned integers of the dtype's size: `.npy` knows no bfloat16.
        dtype: of the tokens.
    """

    def __init__(self, parts: list[np.ndarray], dtype: DTypeLike) -> None:
        self.parts, self.dtype = parts, np.dtype(dtype)

    @classmethod
    def empty(
        cls, shapes: list[tuple[int, ...]], dtype: DTypeLike, folder: Path | None, name: str
    ) -> "Boundary":
        """Storage for tokens; with a folder in files, which get their final name from `commit`."""
        bits = _bits(dtype)
        if folder is None:
            return cls([np.empty(shape, bits) for shape in shapes], dtype)
        with writing(folder):
            parts: list[np.ndarray] = [
                _new_file(Path(f"{folder / name}.{part}.tmp"), bits, shape)
                for part, shape in zip(_PARTS, shapes, strict=True)
            ]
        return cls(parts, dtype)

    @classmethod
    def open(cls, dtype: DTypeLike, folder: Path | None, name: str) -> "Boundary":
        """The tokens of an earlier run.

        Raises:
            ValueError: there is no folder: tokens in memory end with their run.
            InputError: they are not there.
            CheckpointError: they are damaged, or not tokens of this dtype.
        """
        if folder is None:
            raise ValueError(f"the activations {name} of an earlier run are in a folder; name it")
        parts = [map_array(Path(f"{folder / name}.{part}.npy")) for part in _PARTS]
        if any(part.dtype != _bits(dtype) or part.ndim != 3 for part in parts):
            raise CheckpointError(
                f"{folder}: the activations {name} are not {np.dtype(dtype).name} tokens; delete the folder and start again"
            )
        return cls(parts, dtype)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """[S, N, D] and [S, L, D]."""
        return [part.shape for part in self.parts]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, sample: int) -> Tokens:
        rows = (np.array(part[sample : sample + 1]).view(self.dtype) for part in self.parts)
        return Tokens(*map(jnp.asarray, rows))

    def write(self, sample: int, tokens: Tokens) -> None:
        """Store one sample's tokens, [1, N, D] and [1, L, D]."""
        for part, value in zip(self.parts, jax.device_get(tokens), strict=True):
            part[sample] = np.ascontiguousarray(value[0]).view(part.dtype)

    def commit(self, folder: Path | None, name: str) -> None:
        """Give files their name: they appear whole or not at all."""
        if folder is None:
            return
        with writing(folder):
            for part, array in zip(_PARTS, self.parts, strict=True):
                if isinstance(array, np.memmap):
                    array.flush()
                temporary = Path(f"{folder / name}.{part}.tmp")
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(f"{folder / name}.{part}.npy")


def _new_file(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A file that is mapped to memory and has all of its room: the system ends a process that writes to a page which the disk has
    no room for."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in _NOT_KNOWN:
                    raise
    return array


def delete(folder: Path | None, name: str) -> None:
    """Delete the files of a boundary that is no longer needed."""
    if folder is not None:
        for part in _PARTS:
            Path(f"{folder / name}.{part}.npy").unlink(missing_ok=True)


def _bits(dtype: DTypeLike) -> np.dtype:
    return np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
