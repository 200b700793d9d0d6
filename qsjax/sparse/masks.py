"""Static mask families, known before sampling, as block maps: which blocks of video keys a block of video queries sees.

`density` is the share of the video's pairs of tokens that is computed; at 1 all blocks are listed. Blocks of queries may be larger
than those of keys. Text is added to the lists later: every query sees it (`qsjax.sparse.pooled.lists_of`). Masks have the granularity
of blocks: at 128 x 128 tokens, the published token-wise bands of SVG differ from these in 0.4 % of the blocks.
"""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
from jaxtyping import Float

from qsjax.errors import InputError
from qsjax.sparse.boxes import box
from qsjax.sparse.layout import Layout
from qsjax.sparse.shares import BlockMap, longest_for, own, share_for


def dense(layout: Layout, density: float = 1.0) -> BlockMap:
    """All blocks."""
    del density
    return np.ones((layout.q_blocks, layout.kv_blocks), bool)


def band(layout: Layout, density: float) -> BlockMap:
    """Neighbours in the layout's order: Sparse VideoGen's mask (arXiv:2502.01776), in either of its orders.

    As published, queries at both ends of the video see half as many keys as those in the middle.
    """
    return _nearest(layout, np.abs(_from_middle_to_middle(layout)), density)


def window(layout: Layout, density: float) -> BlockMap:
    """The band, moved inwards at both ends so that every row has equally many keys. SVG has fewer keys there."""
    count = longest_for(layout, density)
    filled = int(np.flatnonzero(layout.filled.any(axis=0))[-1]) + 1
    middle = (2 * np.arange(layout.q_blocks) + 1) * layout.block_q
    first = (middle - count * layout.block_kv) // (2 * layout.block_kv)
    first = np.clip(first, 0, max(0, filled - count))[:, None]
    columns = np.arange(layout.kv_blocks)[None]
    return (columns >= first) & (columns < first + count) | own(layout)


def sliding_tiles(layout: Layout, density: float) -> BlockMap:
    """A box of tiles around each tile, moved inwards at the borders (STA, arXiv:2502.04507).

    The box is the largest that does not exceed the density; among equals, the one that covers the axes most evenly.

    Raises:
        InputError: tiles are not made of whole blocks.
    """
    volume, tiles = int(np.prod(layout.tile)), layout.tiles
    whole = math.lcm(layout.block_q, layout.block_kv)
    if volume % whole:
        raise InputError(
            f"sliding tiles of {layout.tile} tokens are not made of whole blocks of {whole}: take tiles of a multiple of"
            f" {whole} tokens, or other blocks"
        )
    parts = volume // layout.block_q, volume // layout.block_kv
    boxes = product(*(range(1, count + 1) for count in tiles))
    a_tile_each = int(np.prod(parts) * np.prod(tiles))  # blocks of lists that see one tile
    wanted = max(1, int(share_for(layout, density) * (layout.pairs / a_tile_each) + 1e-9))

    def merit(box: tuple[int, ...]) -> tuple[int, float]:
        return int(np.prod(box)), min(size / n for size, n in zip(box, tiles, strict=True))

    box = max((box for box in boxes if np.prod(box) <= wanted), key=merit)
    seen = np.ones((1, 1), bool)
    for size, count in zip(box, tiles, strict=True):
        first = np.clip(np.arange(count) - size // 2, 0, count - size)[:, None]
        columns = np.arange(count)[None]
        seen = np.kron(seen, (columns >= first) & (columns < first + size))
    return np.kron(seen, np.ones(parts, bool)).astype(bool)


def radial(layout: Layout, density: float) -> BlockMap:
    """A spatial reach that halves whenever the distance in time doubles (Radial Attention, arXiv:2506.19852).

    Raises:
        InputError: a layout that is not frame-major.
    """
    if layout.tile != (1, 1, 1):
        raise InputError(f"radial masks are for the frame-major order, not tiles of {layout.tile}")
    frame = layout.grid[1] * layout.grid[2]
    apart = np.abs(_from_middle_to_middle(layout))
    frames = np.round(apart / frame)
    aside = np.abs(apart - frames * frame)
    decay = 2.0 ** -np.floor(np.log2(np.maximum(frames, 1)))
    # Spatial distance relative to the reach at that distance in time.
    return _nearest(layout, aside / (frame * decay) + frames * 1e-9, density)


def sink(layout: Layout, frames: int) -> BlockMap:
    """Blocks of keys that hold a token of the video's first frames, [1, K] for all rows; works for any order of tokens."""
    early = layout.kv_valid & (layout.kv_order < frames * layout.grid[1] * layout.grid[2])
    return np.any(early.reshape(layout.kv_blocks, -1), axis=1, keepdims=True).T


STATIC: dict[str, Callable[[Layout, float], BlockMap]] = {
    "dense": dense,
    "band": band,
    "window": window,
    "sta": sliding_tiles,
    "radial": radial,
    "box": box,
}
"""Families by name."""


def _from_middle_to_middle(layout: Layout) -> Float[np.ndarray, "Q K"]:
    """Tokens from the middle of a block of queries to the middle of a block of keys."""
    q = (np.arange(layout.q_blocks) + 0.5) * layout.block_q
    k = (np.arange(layout.kv_blocks) + 0.5) * layout.block_kv
    return k[None] - q[:, None]


def _nearest(layout: Layout, distance: Float[np.ndarray, "Q K"], density: float) -> BlockMap:
    """All blocks up to the distance that gives a density closest to `density`; a block of queries always sees its own tokens."""
    distance = np.where(own(layout), 0.0, distance)
    levels, wanted = np.unique(distance), share_for(layout, density)
    listed = np.searchsorted(np.sort(distance[layout.filled]), levels, side="right")
    shares = listed / layout.pairs
    low = max(0, int(np.searchsorted(shares, wanted, side="right")) - 1)
    high = min(low + 1, len(levels) - 1)
    level = min((low, high), key=lambda level: abs(shares[level] - wanted))
    return distance <= levels[level]
