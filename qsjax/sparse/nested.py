"""Sizes of boxes: a box of tokens for a block of queries, made of boxes for blocks of keys."""

import math
from itertools import product

from qsjax.sparse.layout import Sizes

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


def _slots(grid: Sizes, box: Sizes) -> int:
    return math.prod(-(-size // part) * part for size, part in zip(grid, box, strict=True))
