"""The state of a tuning run on disk: an interrupted run goes on at a step that it has done, and ends with the same bits."""

import io
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qsjax.disk import write_atomically
from qsjax.errors import CheckpointError
from qsjax.untrusted.arrays import read_arrays

_SHARE = 0.05
"""Of the time, at most, that is spent on saving."""


class TuningState(NamedTuple):
    """Everything that the next step needs; a pytree but for the curve.

    Attributes:
        tuned: the variables.
        optimizer: its state.
        curve: the loss of every step that was done.
    """

    tuned: Any
    optimizer: Any
    curve: list[float]


class TuningStore:
    """A file that is replaced as a whole, as often as that takes little of the time.

    Args:
        path: of the file, `.npz`.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._next = path, 0.0

    def read(self, start: TuningState) -> TuningState:
        """The state that an earlier run has stored, or `start`, whose structure it must have.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self._path.exists():
            return start
        leaves, structure = jax.tree.flatten((start.tuned, start.optimizer))
        stored = read_arrays(self._path)
        numbers = [str(number) for number in range(len(leaves))]
        if set(stored) != {"curve", *numbers}:
            raise CheckpointError(
                f"{self._path}: is of another model; delete the folder and start again"
            )
        curve, found = stored["curve"].tolist(), [stored[number] for number in numbers]
        if stored["curve"].ndim != 1 or any(
            a.shape != b.shape or a.dtype != b.dtype for a, b in zip(found, leaves, strict=True)
        ):
            raise CheckpointError(
                f"{self._path}: is of another model; delete the folder and start again"
            )
        tuned, optimizer = jax.tree.unflatten(structure, list(map(jnp.asarray, found)))
        return TuningState(tuned, optimizer, curve)

    def offer(self, state: TuningState, *, last: bool = False) -> None:
        """Store the state, unless the last time was a short while ago; the last one in any case."""
        began = time.monotonic()
        if began < self._next and not last:
            return
        leaves = jax.device_get(jax.tree.leaves((state.tuned, state.optimizer)))
        buffer = io.BytesIO()
        named: Any = {str(number): leaf for number, leaf in enumerate(leaves)}
        np.savez(buffer, curve=np.asarray(state.curve, np.float64), **named)
        write_atomically(self._path, buffer.getvalue())
        spent = time.monotonic() - began
        self._next = began + spent / _SHARE
