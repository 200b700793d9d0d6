"""Rows of a stored table, for one that is too large to hold for the few that are needed."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from qsjax.checkpoint.arrays import require_digest
from qsjax.checkpoint.manifest import Manifest
from qsjax.checkpoint.stored import StoredItem
from qsjax.errors import CheckpointError


class _Piece(NamedTuple):
    """Rows `start` to `stop` of the table, and the item that holds them."""

    start: int
    stop: int
    item: str


class StoredRows:
    """Rows of a matrix in a checkpoint, read when they are first asked for, and kept in the host's memory.

    LLaMA's embedding has 1.05 GB in bfloat16, of which a prompt needs a few hundred rows of 8 kB. Before the first row of a
    stored piece is used, the piece is read through once to compare it with its sha256, some of its rows at a time.

    Args:
        manifest: the checkpoint.
        component: "llama" or "clip".
        leaf: name of the matrix, which may be stored in ranges of rows.
        shape: [rows, columns].
        verify: compare with the sha256 in the manifest, once a process; False reads only the rows.

    Raises:
        CheckpointError: the stored pieces are not a matrix of this shape.
    """

    def __init__(
        self,
        manifest: Manifest,
        component: str,
        leaf: str,
        shape: tuple[int, int],
        *,
        verify: bool = True,
    ) -> None:
        self._manifest, self._component, self._leaf = manifest, component, leaf
        self._verify = verify
        self._stored: dict[str, StoredItem] = {}
        self._pieces: list[_Piece] = []
        end, dtype = 0, np.dtype(np.float32)
        for item, name, spec in manifest.leaves(component):
            if name == leaf:
                start, stop = spec.get("rows", [0, shape[0]])
                if start != end or tuple(spec["shape"]) != (stop - start, shape[1]):
                    break
                self._pieces.append(_Piece(start, stop, item))
                end, dtype = stop, np.dtype(spec["dtype"])
        if end != shape[0]:
            raise CheckpointError(
                f"{manifest.directory}: {component} does not fit its own configuration: the rows of {leaf} from {end} on are"
                f" missing or not of the shape {shape}"
            )
        self.dtype = dtype
        self._known: dict[int, np.ndarray] = {}

    def __call__(self, numbers: Int[np.ndarray, "*B"]) -> np.ndarray:
        """The rows of these numbers in their stored dtype, [*B, columns].

        Raises:
            CheckpointError: a file is missing or damaged, or the table is not what was written.
        """
        wanted, place = np.unique(numbers, return_inverse=True)
        for piece in self._pieces:
            inside = wanted[(wanted >= piece.start) & (wanted < piece.stop)]
            missing = [int(row) for row in inside if int(row) not in self._known]
            if missing:
                rows = self._read(piece, np.array(missing) - piece.start)
                self._known.update(zip(missing, rows, strict=True))
        table = np.stack([self._known[int(row)] for row in wanted])
        return table[place.reshape(numbers.shape)]

    def _read(self, piece: _Piece, rows: np.ndarray) -> np.ndarray:
        if piece.item not in self._stored:
            self._stored[piece.item] = StoredItem(self._manifest, self._component, piece.item)
        stored = self._stored[piece.item]
        if self._verify:
            require_digest(
                self._manifest,
                self._component,
                piece.item,
                self._leaf,
                lambda: stored.blocks(self._leaf),
            )
        return stored.take(self._leaf, rows)
