"""Static mask families, known before sampling, as block maps: which blocks of video keys a block of video queries sees.

`density` is the share of the pairs of video blocks. Text is added to the lists later: every query sees it
(`qsjax.sparse.pooled.lists_of`). Masks have the granularity of blocks: at 128 tokens, the published token-wise bands of SVG
differ from these in 0.4 % of the blocks.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
from jaxtyping import Bool

from qsjax.errors import InputError
from qsjax.sparse.layout import Layout

BlockMap = Bool[np.ndarray, "Q K"]


def dense(layout: Layout, density: float = 1.0) -> BlockMap:
    """All blocks."""
    del density
    return np.ones((layout.blocks, layout.blocks), bool)


def band(layout: Layout, density: float) -> BlockMap:
    """Neighbours in the layout's order: Sparse VideoGen's mask (arXiv:2502.01776), in either of its orders.

    As published, queries at both ends of the video see half as many keys as those in the middle.
    """
    distance = _distance(layout)
    return distance <= _nearest(lambda reach: distance <= reach, layout.blocks, density)


def window(layout: Layout, density: float) -> BlockMap:
    """The band, moved inwards at both ends so that every row has equally many keys. SVG has fewer keys there."""
    count = _count(layout, density)
    first = np.clip(np.arange(layout.blocks) - count // 2, 0, layout.blocks - count)[:, None]
    columns = np.arange(layout.blocks)[None]
    return (columns >= first) & (columns < first + count)


def sliding_tiles(layout: Layout, density: float) -> BlockMap:
    """A box of tiles around each tile, moved inwards at the borders (STA, arXiv:2502.04507).

    The box is the largest that does not exceed the density; among equals, the one that covers the axes most evenly.

    Raises:
        InputError: tiles are not made of whole blocks.
    """
    volume, tiles = int(np.prod(layout.tile)), layout.tiles
    if volume % layout.block:
        raise InputError(
            f"sliding tiles of {layout.tile} tokens are not made of whole blocks of {layout.block}: take tiles of a multiple of"
            f" {layout.block} tokens, or another block"
        )
    boxes = product(*(range(1, count + 1) for count in tiles))
    wanted = max(1, int(density * np.prod(tiles) + 1e-9))

    def merit(box: tuple[int, ...]) -> tuple[int, float]:
        return int(np.prod(box)), min(size / n for size, n in zip(box, tiles, strict=True))

    box = max((box for box in boxes if np.prod(box) <= wanted), key=merit)
    seen = np.ones((1, 1), bool)
    for size, count in zip(box, tiles, strict=True):
        first = np.clip(np.arange(count) - size // 2, 0, count - size)[:, None]
        columns = np.arange(count)[None]
        seen = np.kron(seen, (columns >= first) & (columns < first + size))
    parts = volume // layout.block
    return np.kron(seen, np.ones((parts, parts), bool)).astype(bool)


def radial(layout: Layout, density: float) -> BlockMap:
    """A spatial reach that halves whenever the distance in time doubles (Radial Attention, arXiv:2506.19852).

    Raises:
        InputError: a layout that is not frame-major.
    """
    if layout.tile != (1, 1, 1):
        raise InputError(f"radial masks are for the frame-major order, not tiles of {layout.tile}")
    frame = layout.grid[1] * layout.grid[2]
    middle = (np.arange(layout.blocks) + 0.5) * layout.block
    apart = np.abs(middle[:, None] - middle[None])
    frames = np.round(apart / frame)
    aside = np.abs(apart - frames * frame)
    decay = 2.0 ** -np.floor(np.log2(np.maximum(frames, 1)))
    # Spatial distance relative to the reach at that distance in time; a block always sees itself.
    needed = np.where(apart == 0, 0.0, aside / (frame * decay) + frames * 1e-9)
    levels = np.unique(needed)
    reach = levels[_nearest(lambda level: needed <= levels[level], len(levels), density)]
    return needed <= reach


def sink(layout: Layout, frames: int) -> BlockMap:
    """Blocks of keys that hold a token of the video's first frames, [1, K] for all rows; works for any order of tokens."""
    early = layout.valid & (layout.order < frames * layout.grid[1] * layout.grid[2])
    return np.any(early.reshape(layout.blocks, -1), axis=1, keepdims=True).T


STATIC: dict[str, Callable[[Layout, float], BlockMap]] = {
    "dense": dense,
    "band": band,
    "window": window,
    "sta": sliding_tiles,
    "radial": radial,
}
"""Families by name."""


def _distance(layout: Layout) -> np.ndarray:
    blocks = np.arange(layout.blocks)
    return np.abs(blocks[:, None] - blocks[None])


def _count(layout: Layout, density: float) -> int:
    return min(layout.blocks, max(1, round(density * layout.blocks)))


def _nearest(mask: Callable[[int], np.ndarray], count: int, density: float) -> int:
    """The parameter in 0 .. count - 1 whose mask has the density closest to `density`; the density grows with the parameter."""
    low, high = 0, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if mask(middle).mean() <= density else (low, middle)
    return min((low, high), key=lambda parameter: abs(mask(parameter).mean() - density))
