"""How leaves are grouped into checkpoint items: small enough for memory, never across blocks."""

from typing import NamedTuple

from convert.component import Component
from convert.keymaps import Row

ITEM_BYTES = 128 * 2**20
"""An item is held about three times while it is written: ours, Orbax's copy, and what is on its way to the disk."""


class Piece(NamedTuple):
    """What a row becomes: a leaf, the rows `start:stop` of one, or the leaves of a quantized layer."""

    row: Row
    nbytes: int
    rows: tuple[int, int] | None = None


class Item(NamedTuple):
    """What is written at once.

    Attributes:
        name: its directory under the component.
        pieces: its leaves.
    """

    name: str
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Size of the item, in bytes."""
        return sum(piece.nbytes for piece in self.pieces)


def plan_items(component: Component, limit: int = ITEM_BYTES) -> tuple[Item, ...]:
    """The items of a component, in the order in which they are written and loaded.

    Args:
        component: what to convert.
        limit: bytes an item may have. Embedding tables above it are split by rows; another leaf above it
            is an item by itself.
    """
    groups: dict[str, list[Piece]] = {}
    for row in component.rows:
        groups.setdefault(row.group, []).extend(_pieces(component, row, limit))
    items: list[Item] = []
    for group, pieces in groups.items():
        chunks: list[list[Piece]] = [[]]
        for piece in pieces:
            if chunks[-1] and sum(p.nbytes for p in chunks[-1]) + piece.nbytes > limit:
                chunks.append([])
            chunks[-1].append(piece)
        single = len(chunks) == 1
        items.extend(
            Item(group if single else f"{group}-{k}", tuple(chunk))
            for k, chunk in enumerate(chunks)
        )
    return tuple(items)


def _pieces(component: Component, row: Row, limit: int) -> list[Piece]:
    nbytes = sum(info.nbytes for info in component.outputs(row).values())
    table = row.transform == "copy" and len(row.shape) == 2
    if not table or nbytes <= limit:
        return [Piece(row, nbytes)]
    row_bytes = nbytes // row.shape[0]
    step = max(1, limit // row_bytes)
    ranges = [(start, min(start + step, row.shape[0])) for start in range(0, row.shape[0], step)]
    return [Piece(row, (stop - start) * row_bytes, (start, stop)) for start, stop in ranges]
