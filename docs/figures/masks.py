"""The masks of a small video, as the figure shows them: token by token, in the model's order."""

import jax.numpy as jnp
import numpy as np

from qsjax.sparse.layout import Layout
from qsjax.sparse.masks import STATIC
from qsjax.sparse.pooled import best, pooled_scores
from qsjax.sparse.shares import longest_for, own

GRID = (8, 6, 8)
"""Tokens along time, height and width."""
BLOCK = 16
DENSITY = 0.25
_IN_ORDER, _ALONG_TIME, _BOXES = (1, 1, 1), (GRID[0], 1, 1), (2, 2, 4)
FAMILIES = {
    "svg, frame by frame": ("band", _IN_ORDER),
    "svg, along time": ("band", _ALONG_TIME),
    "window": ("window", _IN_ORDER),
    "sta": ("sta", _BOXES),
    "radial": ("radial", _IN_ORDER),
    "box": ("box", _BOXES),
    "topk": ("topk", _BOXES),
    "dense": ("dense", _IN_ORDER),
}
"""Title -> family, and the tile that orders its tokens."""


def token_mask(family: tuple[str, tuple[int, int, int]]) -> np.ndarray:
    """Which keys each query sees, bool [tokens, tokens]."""
    name, tile = family
    layout = Layout(GRID, tile, BLOCK)
    seen = _chosen(layout) if name == "topk" else STATIC[name](layout, DENSITY) & layout.filled
    query, key = np.nonzero(layout.valid)[0], np.nonzero(layout.kv_valid)[0]
    mask = np.zeros((layout.tokens, layout.tokens), bool)
    mask[np.ix_(layout.order[query], layout.kv_order[key])] = seen[np.ix_(query // BLOCK, key // BLOCK)]  # fmt: skip
    return mask


def _chosen(layout: Layout) -> np.ndarray:
    """Blocks that follow the tokens. They stand for a shape that moves to the right over a plain background."""
    time, height, width = np.indices(GRID).reshape(3, -1)
    inside = (np.abs(width - time) <= 1) & (np.abs(height - 2.5) <= 1.5)
    tokens = np.stack([4 * inside, 2 * ~inside, *(np.cos(x / 4) for x in (time, height, width))])
    tokens = jnp.asarray(tokens.T[None, None], jnp.float32)
    forced = jnp.asarray(own(layout))
    count = longest_for(layout, DENSITY)
    return np.asarray(best(pooled_scores(tokens, tokens, layout), count, forced))[0, 0]
