"""Block maps, and how many blocks a density allows."""

import numpy as np
from jaxtyping import Bool

from qsjax.sparse.layout import Layout

BlockMap = Bool[np.ndarray, "Q K"]
"""Which blocks of video keys a block of video queries sees."""


def own(layout: Layout) -> BlockMap:
    """The blocks of keys that hold tokens of a block of queries."""
    q = np.arange(layout.q_blocks)[:, None] * layout.block_q
    k = np.arange(layout.kv_blocks)[None] * layout.block_kv
    return (q < k + layout.block_kv) & (k < q + layout.block_q)


def share_for(layout: Layout, density: float) -> float:
    """How many blocks the lists of all rows may hold together, over `Layout.pairs`.

    At density 1 that is all blocks, which is more than 1 if tiles do not fit the video.
    """
    return layout.q_blocks * layout.kv_blocks / layout.pairs if density == 1 else density


def longest_for(layout: Layout, density: float) -> int:
    """How many blocks each list may hold if all have equally many: at least those of the row itself."""
    count = round(share_for(layout, density) * (layout.pairs / layout.q_blocks))
    return min(layout.kv_blocks, max(count, int(own(layout).sum(axis=1).max())))
