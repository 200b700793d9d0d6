"""A mask family at a size: the order of the tokens, the lists, and what of them is decided while sampling."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from pallas_kernels import BlockLists
from qsjax.config import nearest
from qsjax.errors import InputError
from qsjax.sparse import masks, pooled
from qsjax.sparse.layout import Layout, Sizes
from qsjax.sparse.profile import nearest_order, profile_rows, seen_keys

CHOSEN = ("topk", "topp")
FAMILIES = ("svg", "svg-window", *masks.STATIC, *CHOSEN)
"""svg: the band, in frame-major or token-major order, by head; svg-window: likewise, with windows instead."""


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Which pairs of tokens are computed.

    Attributes:
        mask: one of `FAMILIES`.
        density: share of the pairs of video blocks; of topp the most that a list may hold. Text is seen by all, and sees all.
        block: tokens of a block; accelerators want 128 or a multiple. 0 takes 128, or less (64, 32, 16) where a video has not
            even 32 of them.
        tile: tokens of a tile along time, height and width, for all but svg and radial; 1 x 1 x 1 is the model's order.
        mass: of topp: the share of the pooled softmax that a list is to reach.
        sink_frames: the first frames, which all queries see besides.
        profiled_rows: of svg: rows that decide a head's order.
        every_step: of topk and topp: lists are chosen anew in every sparse step; else they stay from refresh to refresh, so that
            what is cached belongs to them.
    """

    mask: str = "svg"
    density: float = 0.15
    block: int = 0
    tile: Sizes = (1, 1, 1)
    mass: float = 0.9
    sink_frames: int = 0
    profiled_rows: int = 64
    every_step: bool = False

    def __post_init__(self) -> None:
        if self.mask not in FAMILIES:
            raise InputError(f"no mask {self.mask!r}; {nearest(self.mask, FAMILIES)}")
        if not 0 < self.density <= 1 or not 0 < self.mass <= 1:
            raise InputError(
                f"density={self.density}, mass={self.mass}: both are shares above 0, up to 1"
            )
        if min(*self.tile, self.profiled_rows) < 1 or min(self.block, self.sink_frames) < 0:
            raise InputError(
                f"tile={self.tile}, profiled_rows={self.profiled_rows} must be 1 or more, block={self.block},"
                f" sink_frames={self.sink_frames} 0 or more"
            )
        if self.mask.startswith(("svg", "radial")) and self.tile != (1, 1, 1):
            raise InputError(f"tile={self.tile}: {self.mask} has orders of its own; leave it out")
        if self.every_step and self.mask not in CHOSEN:
            raise InputError(
                f"every_step: the lists of {self.mask} do not change; it is for {' and '.join(CHOSEN)}"
            )
        if self.mask.startswith("svg") and self.sink_frames:
            raise InputError(
                f"sink_frames={self.sink_frames}: in the token-major order of {self.mask} every block has a token of the first"
                " frames; take band, window, sta or topk"
            )

    def sized(self, tokens: int) -> "Sparsity":
        """With the block size for a video of so many tokens."""
        if self.block:
            return self
        fitting = (block for block in (128, 64, 32) if tokens >= 32 * block)
        return replace(self, block=next(fitting, 16))


class Choice(NamedTuple):
    """What a pattern decides while sampling; None where it decides nothing.

    Attributes:
        indices, counts: of `BlockLists`, [B, H, blocks, K] and [B, H, blocks].
        second: whether a head takes the second order, bool [B, H].
    """

    indices: Any = None
    counts: Any = None
    second: Any = None


class Pattern:
    """A mask family for one size of video and text.

    Args:
        config: the family.
        grid: video tokens along time, height and width.
        text: text tokens, padding included.

    Attributes:
        layouts: one order of the video tokens, or two for heads to choose from.
    """

    def __init__(self, config: Sparsity, grid: Sizes, text: int) -> None:
        config = config.sized(int(np.prod(grid)))
        self.config, self.text = config, text
        block = config.block
        first = Layout(grid, config.tile, block)
        self.layouts = (first,)
        if config.mask.startswith("svg"):
            self.layouts = (first, Layout.token_major(grid, block))
        self._maps = tuple(self._map(layout) for layout in self.layouts)
        # Constants of the programs that use them, wherever the pattern is made.
        with jax.ensure_compile_time_eval():
            self._lists, self._text_lists = self._constant_lists()

    @property
    def text_blocks(self) -> int:
        """Blocks of text, the last one maybe partial."""
        return -(-self.text // self.config.block)

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
        """Decide, from all queries and keys, video before text in the model's order."""
        if len(self.layouts) == 2:
            rows = profile_rows(self.layouts[0].tokens, self.config.profiled_rows)
            keys = [
                seen_keys(layout, seen, rows)
                for layout, seen in zip(self.layouts, self._maps, strict=True)
            ]
            return Choice(second=nearest_order(q[:, rows], k, v, kv_valid, keys))
        if self.frozen:
            return Choice()
        config, (layout,) = self.config, self.layouts
        video, valid = layout.tokens, jnp.asarray(layout.valid)
        q, k = (layout.arrange(x[:, :video]) for x in (q, k))
        scores = pooled.pooled_scores(q, k, valid, config.block)
        forced = jnp.asarray(masks.sink(layout, config.sink_frames))
        if config.mask == "topk":
            seen = pooled.best(scores, self._longest, forced)
        else:
            sizes = valid.reshape(-1, config.block).sum(axis=1).astype(jnp.float32)
            seen = pooled.share(scores, config.mass, self._longest, forced, sizes)
        lists = pooled.lists_of(seen, self.text_blocks, block=config.block, longest=self._longest)
        return Choice(lists.indices, lists.counts)

    def lists(self, choice: Choice) -> BlockLists:
        """Lists of the video's rows over all keys: video in the order of `arrange`, then text."""
        block = self.config.block
        if self._lists is not None:
            return self._lists
        return BlockLists(
            choice.indices,
            choice.counts,
            block_q=block,
            block_kv=block,
            kv_blocks=self.layouts[0].blocks + self.text_blocks,
        )

    def text_lists(self) -> BlockLists:
        """Lists of the text's rows: everything."""
        return self._text_lists

    def empty(self, batch: int, heads: int) -> Choice:
        """A choice of the right shapes that is none yet."""
        blocks, longest = self.layouts[0].blocks, self._longest + self.text_blocks
        if len(self.layouts) == 2:
            return Choice(second=jnp.zeros((batch, heads), jnp.bool_))
        if self.frozen:
            return Choice()
        return Choice(
            jnp.zeros((batch, heads, blocks, longest), jnp.int32),
            jnp.zeros((batch, heads, blocks), jnp.int32),
        )

    def arrange(self, x: Shaped[Array, "B N H ..."], choice: Choice) -> Shaped[Array, "B S H ..."]:
        """Video tokens in the order of each head."""
        arranged = [layout.arrange(x) for layout in self.layouts]
        return self._by_head(arranged, choice)

    def restore(self, x: Shaped[Array, "B S H ..."], choice: Choice) -> Shaped[Array, "B N H ..."]:
        """Inverse of `arrange`."""
        return self._by_head([layout.restore(x) for layout in self.layouts], choice)

    def valid(self, kv_valid: Bool[Array, "B L"]) -> Bool[Array, "B S"]:
        """Which keys are there, in the order of the lists."""
        layout = self.layouts[0]
        video = layout.arrange(kv_valid[:, : layout.tokens])
        return jnp.concatenate([video, kv_valid[:, layout.tokens :]], axis=1)

    @property
    def _longest(self) -> int:
        blocks = self.layouts[0].blocks
        return min(blocks, max(1, round(self.config.density * blocks)) + self._sinks)

    @property
    def _sinks(self) -> int:
        return int(masks.sink(self.layouts[0], self.config.sink_frames).sum())

    def _constant_lists(self) -> tuple[BlockLists | None, BlockLists]:
        block, blocks = self.config.block, self.layouts[0].blocks
        # A short text is not padded to a block of queries.
        rows = next((size for size in (16, 32, 64) if self.text <= size < block), block)
        everything = np.ones((1, -(-self.text // rows), blocks + self.text_blocks), bool)
        text = BlockLists.from_block_map(everything, block_q=rows, block_kv=block)
        if not self.frozen:
            return None, text
        # Of both orders the lists are the same.
        return pooled.lists_of(self._maps[0][None, None], self.text_blocks, block=block), text

    def _map(self, layout: Layout) -> masks.BlockMap:
        config = self.config
        if config.mask in CHOSEN:
            return np.ones((layout.blocks, layout.blocks), bool)
        name = {"svg": "band", "svg-window": "window"}.get(config.mask, config.mask)
        seen = masks.STATIC[name](layout, config.density) | masks.sink(layout, config.sink_frames)
        return seen & np.any(layout.valid.reshape(layout.blocks, -1), axis=1, keepdims=True).T

    def _by_head(self, arranged: list[Array], choice: Choice) -> Array:
        if len(arranged) == 1:
            return arranged[0]
        first, second = arranged
        which = choice.second[:, None, :].reshape(
            choice.second.shape[0], 1, -1, *(1,) * (first.ndim - 3)
        )
        return jnp.where(which, second, first)
