"""Boxes of tokens for blocks of queries, made of boxes for blocks of keys: their sizes, and the mask that they are for."""

import math
from itertools import product

import numpy as np
from jaxtyping import Int

from qsjax.errors import InputError
from qsjax.sparse.layout import Layout, Sizes
from qsjax.sparse.shares import BlockMap, share_for

_LENIENCE = 1.06
"""A box may pad the video by this factor more than the one that pads it least, if it is more like a cube."""


def tile_for(grid: Sizes, tokens: int) -> Sizes:
    """The box of a number of tokens that fits a video: little padding, then sides of similar length; of equals the longest in time."""
    divisors = [size for size in range(1, tokens + 1) if tokens % size == 0]
    boxes = [
        (t, h, tokens // (t * h)) for t, h in product(divisors, repeat=2) if tokens % (t * h) == 0
    ]
    slots = {box: _slots(grid, box) for box in boxes}
    limit = _LENIENCE * min(slots.values())
    fitting = [box for box in boxes if slots[box] <= limit]
    return min(fitting, key=lambda box: (max(box) / min(box), slots[box], -box[0], -box[1]))


def cell_for(tile: Sizes, tokens: int) -> Sizes:
    """The tile halved along its longest side, of equals the last, until it has a number of tokens; the tile if that cannot be."""
    cell = list(tile)
    while math.prod(cell) > tokens:
        axis = max((size, axis) for axis, size in enumerate(cell))[1]
        if cell[axis] % 2:
            return tile
        cell[axis] //= 2
    t, h, w = cell
    return (t, h, w) if math.prod(cell) == tokens else tile


def box(layout: Layout, density: float) -> BlockMap:
    """A box of cells around each tile, moved inwards at the borders: sliding tiles, whose keys are finer than their queries.

    Of the boxes within 9 % of the density, the one that covers the axes most evenly, of equals the one most like a cube; if there
    is none, the largest below it, or the smallest.

    Raises:
        InputError: tiles are not made of whole blocks of queries, or cells of whole blocks of keys.
    """
    cell = layout.cell or layout.tile
    rows, columns = int(np.prod(layout.tile)), int(np.prod(cell))
    if rows % layout.block_q or columns % layout.block_kv:
        raise InputError(
            f"boxes of {layout.tile} tokens, made of {cell}, are not whole blocks of {layout.block_q} x {layout.block_kv}"
        )
    parts = rows // layout.block_q, columns // layout.block_kv
    wanted = share_for(layout, density) * (layout.pairs / layout.q_blocks) / parts[1]
    counts = [-(-size // part) for size, part in zip(layout.grid, cell, strict=True)]
    least = [min(pair) for pair in zip(layout.cells, counts, strict=True)]
    boxes = product(*(range(low, count + 1) for low, count in zip(least, counts, strict=True)))

    def merit(box: tuple[int, ...]) -> tuple[bool, float, float]:
        volume = int(np.prod(box))
        near = 0.91 * wanted <= volume <= 1.09 * wanted
        even = min(side / n for side, n in zip(box, counts, strict=True))
        size = float(volume if volume <= wanted else -volume)
        sides = [side * part for side, part in zip(box, cell, strict=True)]
        return near, even if near else size, min(sides) / max(sides)

    seen = np.ones((1, 1), bool)
    where, place = np.indices(layout.tiles).reshape(3, -1), _cells_in_order(layout)
    for axis, size in enumerate(max(boxes, key=merit)):
        first = where[axis] * layout.cells[axis] - (size - layout.cells[axis]) // 2
        first = np.clip(first, 0, counts[axis] - size)[:, None]
        seen = seen & (place[axis] >= first) & (place[axis] < first + size)
    return np.kron(seen, np.ones(parts, bool)).astype(bool)


def _slots(grid: Sizes, box: Sizes) -> int:
    return math.prod(-(-size // part) * part for size, part in zip(grid, box, strict=True))


def _cells_in_order(layout: Layout) -> Int[np.ndarray, "3 cells"]:
    """Place of each cell along time, height and width, in the order of the sequence."""
    tiles = np.indices(layout.tiles).reshape(3, -1, 1)
    inside = np.indices(layout.cells).reshape(3, 1, -1)
    return (tiles * np.array(layout.cells)[:, None, None] + inside).reshape(3, -1)
