"""Rows of a stored table, for one that is too large to read for the few that are needed.

TensorStore, which comes with Orbax and writes the files, reads a part of an array; Orbax reads whole arrays.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from jaxtyping import Int

from qsjax.checkpoint.manifest import Manifest
from qsjax.errors import CheckpointError


class _Piece(NamedTuple):
    """Rows `start` to `stop` of the table, and the item that holds them."""

    start: int
    stop: int
    item: str


class StoredRows:
    """Rows of a matrix in a checkpoint, read when they are first asked for, and kept in the host's memory.

    Only the chunks that hold the rows are read, of 16 MB in checkpoints of this version: LLaMA's embedding has 1.05 GB in
    bfloat16, of which a prompt needs a few hundred rows of 8 kB.

    Args:
        manifest: the checkpoint.
        component: "llama" or "clip".
        leaf: name of the matrix, which may be stored in ranges of rows.
        shape: [rows, columns].

    Raises:
        CheckpointError: the stored pieces are not a matrix of this shape.
    """

    def __init__(
        self, manifest: Manifest, component: str, leaf: str, shape: tuple[int, int]
    ) -> None:
        self._folder, self._leaf, self._shape = manifest.directory / component, leaf, shape
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
            CheckpointError: a file is missing or damaged.
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
        state = self._folder / piece.item / "state"
        try:
            found = ts.open(_store(state, self._leaf), read=True, open=True).result()
            if found.shape != (piece.stop - piece.start, self._shape[1]):
                raise ValueError(f"its shape is {found.shape}")
            return np.asarray(found[rows].read().result())
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{state.parent}: rows of {self._leaf} cannot be read ({str(error).splitlines()[0]}); convert the checkpoint"
                f" again"
            ) from error


def _store(state: Path, leaf: str) -> dict[str, Any]:
    """Where TensorStore finds a leaf of an item, in the layout that Orbax's metadata name."""
    layout = json.loads((state / "_METADATA").read_text(encoding="utf-8"))
    files: Any = {"driver": "file", "path": f"{state.absolute()}/"}
    if layout["use_ocdbt"]:
        files = {"driver": "ocdbt", "base": files}
        place: dict[str, Any] = {"path": f"{leaf}/"}
    else:
        files["path"] += f"{leaf}/"
        place = {}
    return {"driver": "zarr3" if layout.get("use_zarr3") else "zarr", "kvstore": files, **place}
