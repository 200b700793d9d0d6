"""A mask family for one size of video: the order of the tokens, the block lists, and what is chosen while sampling."""

from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pallas_kernels import BlockLists, targets
from qsjax.errors import InputError
from qsjax.settings.sparsity import CHOSEN, Sparsity
from qsjax.sparse import masks, pooled
from qsjax.sparse.boxes import cell_for, tile_for
from qsjax.sparse.layout import Layout, Sizes
from qsjax.sparse.orders import Orders
from qsjax.sparse.profile import nearest_order, profile_rows, seen_keys
from qsjax.sparse.shares import BlockMap, longest_for, own

_MOST_PAIRS = 1 << 24
"""Pairs of blocks of one layer and head: a table of them is made in the host's memory. 720p has 0.9 million."""


class Choice(NamedTuple):
    """What a pattern chooses while sampling; fields that it does not choose are None.

    Attributes:
        indices: block indices of `BlockLists`, int32 [B, H, Q, K], Q blocks of queries with room for K blocks of keys each.
        counts: list lengths of `BlockLists`, int32 [B, H, Q].
        second: whether a head uses the second order of tokens, bool [B, H].
    """

    indices: Array | None = None
    counts: Array | None = None
    second: Array | None = None


class Pattern:
    """A mask family for one size of video and text.

    Args:
        config: the family; block sizes of 0 are chosen for the current target (`pallas_kernels.targets`).
        grid: video tokens along time, height and width.
        text: text tokens, padding included.

    Attributes:
        config: the family, block sizes set.
        layouts: one order of the video tokens, or two for heads to choose from.
        orders: brings tokens into these orders, and back.
    """

    def __init__(self, config: Sparsity, grid: Sizes, text: int) -> None:
        config = config.sized(int(np.prod(grid)), targets.current().backend)
        self.config, self.text = config, text
        blocks, tile, cell = (config.block_q, config.block_kv), config.tile, None
        if config.mask == "box" and tile == (1, 1, 1):
            tile = tile_for(grid, config.block_q)
        if config.mask in ("box", *CHOSEN) and config.block_q > config.block_kv:
            cell = cell_for(tile, config.block_kv)
        layouts = (Layout(grid, tile, *blocks, cell),)
        if config.mask.startswith("svg"):
            layouts = (*layouts, Layout.token_major(grid, *blocks))
        pairs = max(layout.q_blocks * layout.kv_blocks for layout in layouts)
        if pairs > _MOST_PAIRS:
            raise InputError(
                f"blocks of {config.block_q} queries and {config.block_kv} keys make {pairs:,} pairs of a video of {grid} tokens,"
                f" and lists are for {_MOST_PAIRS:,} at most; take larger blocks (`sparsity.block_q`, `sparsity.block_kv`)"
            )
        self.layouts, self.orders = layouts, Orders(layouts)
        self._maps = tuple(self._map(layout) for layout in self.layouts)
        # A pattern may be made while tracing: these must be concrete arrays even then, constants of any program.
        with jax.ensure_compile_time_eval():
            self._lists, self._text_lists = self._constant_lists()

    @property
    def text_blocks(self) -> int:
        """Blocks of text keys; the last one may be partial."""
        return -(-self.text // self.config.block_kv)

    @property
    def frozen(self) -> bool:
        """Whether lists are the same for all heads, steps and prompts."""
        return self.config.mask not in CHOSEN

    def choose(
        self,
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B L"],
    ) -> Choice:
        """Choose lists or orders from all queries, keys and values, video before text in the model's order."""
        if len(self.layouts) == 2:
            rows = profile_rows(self.layouts[0].tokens, self.config.profiled_rows)
            keys = [
                seen_keys(layout, seen, rows)
                for layout, seen in zip(self.layouts, self._maps, strict=True)
            ]
            # Cut one by one: indexing with all of them would bring every head to another layout of memory first.
            few = jnp.concatenate([q[:, row : row + 1] for row in rows.tolist()], axis=1)
            return Choice(second=nearest_order(few, k, v, kv_valid, keys))
        if self.frozen:
            return Choice()
        config, (layout,) = self.config, self.layouts
        q, k = (x[:, : layout.tokens].swapaxes(1, 2) for x in (q, k))
        scores = pooled.pooled_scores(q, k, layout)
        forced = masks.sink(layout, config.sink_frames) | (own(layout) & layout.filled)
        if config.mask == "topk":
            seen = pooled.best(scores, self._longest, jnp.asarray(forced))
        else:
            sizes = layout.kv_valid.reshape(layout.kv_blocks, -1).sum(axis=1)
            sizes = jnp.asarray(sizes, jnp.float32)
            seen = pooled.share(scores, config.mass, self._longest, jnp.asarray(forced), sizes)
        lists = self._lists_of(seen, self._longest)
        return Choice(lists.indices, lists.counts)

    def lists(self, choice: Choice) -> BlockLists:
        """Block lists of the video queries over all keys: video in the order of `orders.keys`, then text."""
        if self._lists is not None:
            return self._lists
        return BlockLists(
            choice.indices,
            choice.counts,
            block_q=self.config.block_q,
            block_kv=self.config.block_kv,
            kv_blocks=self.layouts[0].kv_blocks + self.text_blocks,
        )

    def text_lists(self) -> BlockLists:
        """Block lists of the text queries: all keys."""
        return self._text_lists

    def empty(self, batch: int, heads: int) -> Choice:
        """A placeholder choice of the right shapes, before the first refresh."""
        blocks, longest = self.layouts[0].q_blocks, self._longest + self.text_blocks
        if len(self.layouts) == 2:
            return Choice(second=jnp.zeros((batch, heads), jnp.bool_))
        if self.frozen:
            return Choice()
        return Choice(
            jnp.zeros((batch, heads, blocks, longest), jnp.int32),
            jnp.zeros((batch, heads, blocks), jnp.int32),
        )

    @overload
    def density(self, listed: int) -> float: ...
    @overload
    def density(self, listed: np.ndarray) -> np.ndarray: ...
    def density(self, listed: int | np.ndarray) -> float | np.ndarray:
        """Share of the pairs of tokens that a sparse step computes: those in the video's lists, and all pairs with text queries.

        Tokens count in whole blocks, because that is how they are computed.

        Args:
            listed: blocks in the lists of all blocks of video queries of a head, text included.
        """
        layout, block_kv = self.layouts[0], self.config.block_kv
        text = self.text_blocks * block_kv
        video = -(-layout.tokens // block_kv) * block_kv
        computed = listed * layout.block_q * block_kv + text * (layout.kv_slots + text)
        return computed / (video + text) ** 2

    @property
    def _longest(self) -> int:
        layout = self.layouts[0]
        return min(layout.kv_blocks, longest_for(layout, self.config.density) + self._sinks)

    @property
    def _sinks(self) -> int:
        return int(masks.sink(self.layouts[0], self.config.sink_frames).sum())

    def _constant_lists(self) -> tuple[BlockLists | None, BlockLists]:
        block_q, block_kv = self.config.block_q, self.config.block_kv
        # A short text is not padded to a block of queries.
        sizes = (16, 32, 64, 128, 256)
        rows = next((size for size in sizes if self.text <= size < block_q), block_q)
        keys = self.layouts[0].kv_blocks + self.text_blocks
        everything = np.ones((1, -(-self.text // rows), keys), bool)
        text = BlockLists.from_block_map(everything, block_q=rows, block_kv=block_kv)
        if not self.frozen:
            return None, text
        # The lists are identical for both orders.
        return self._lists_of(self._maps[0][None, None]), text

    def _lists_of(self, seen: Array | np.ndarray, longest: int | None = None) -> BlockLists:
        sizes = {"block_q": self.config.block_q, "block_kv": self.config.block_kv}
        return pooled.lists_of(seen, self.text_blocks, **sizes, longest=longest)

    def _map(self, layout: Layout) -> BlockMap:
        config = self.config
        if config.mask in CHOSEN:
            return layout.filled
        name = {"svg": "band", "svg-window": "window"}.get(config.mask, config.mask)
        seen = masks.STATIC[name](layout, config.density) | masks.sink(layout, config.sink_frames)
        return seen & layout.filled
