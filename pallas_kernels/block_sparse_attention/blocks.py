"""Which blocks of keys each block of queries sees: lists with counts, as arrays that a compiled program can take.

A list is data, the room for it is not: lists that are chosen during sampling change without a new compilation.
"""

from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["indices", "counts"],
    meta_fields=["block_q", "block_kv", "kv_blocks"],
)
@dataclass(frozen=True)
class BlockLists:
    """For every sample, head and block of queries, the blocks of keys it sees.

    Attributes:
        indices: int32 [B or 1, H or 1, query blocks, K], ascending; entries past the count repeat the last valid
            index (0 in an empty list), so that fetching ahead fetches nothing new.
        counts: int32 [B or 1, H or 1, query blocks]; 0 is an empty list, whose result is 0.
        block_q: queries in a block.
        block_kv: keys in a block.
        kv_blocks: number of blocks of keys.
    """

    indices: Any  # Not only arrays: jax puts shapes, shardings and placeholders here.
    counts: Any
    block_q: int
    block_kv: int
    kv_blocks: int

    @classmethod
    def from_block_map(
        cls,
        block_map: Bool[Array | np.ndarray, "*B H Q K"],
        *,
        block_q: int,
        block_kv: int,
        longest: int | None = None,
    ) -> "BlockLists":
        """Lists of the true entries of a map.

        Args:
            block_map: with or without a batch dimension; 1 for what samples or heads share.
            block_q: queries in a block.
            block_kv: keys in a block.
            longest: K, entries to make room for; a row with more keeps its first. None is the longest row, or all
                blocks if the map is traced.

        Raises:
            ValueError: a map that is not 3- or 4-dimensional, or sizes below 1.
        """
        if block_map.ndim not in (3, 4):
            raise ValueError(f"a block map is [(B,) H, Q, K], found {block_map.shape}")
        if min(block_q, block_kv) < 1 or (longest is not None and longest < 1):
            raise ValueError(f"{block_q=}, {block_kv=}, {longest=}: all must be 1 or more")
        traced = isinstance(block_map, jax.core.Tracer)
        # For NumPy's maps jax would compile a program for every shape.
        xp = np if isinstance(block_map, np.ndarray) else jnp
        if block_map.ndim == 3:
            block_map = block_map[None]
        kv_blocks = block_map.shape[-1]
        counts = block_map.sum(axis=-1, dtype=xp.int32)
        if longest is None:
            longest = kv_blocks if traced else max(1, int(counts.max()))
        longest = min(longest, kv_blocks)
        # A stable sort by "is not listed" puts the listed blocks first, in order.
        order = xp.argsort(~block_map, axis=-1, stable=True)[..., :longest].astype(xp.int32)
        counts = xp.minimum(counts, xp.int32(longest))
        indices = _repeat_last(order, counts, xp)
        return cls(jnp.asarray(indices), jnp.asarray(counts), block_q, block_kv, kv_blocks)

    @classmethod
    def from_band(
        cls, length: int, width: int, *, block_q: int, block_kv: int, dense_from: int | None = None
    ) -> "BlockLists":
        """The blocks that a band `|query - key|` < width touches, for all heads; SVG's mask (arXiv:2502.01776).

        Args:
            length: tokens.
            width: of the band, tokens.
            block_q: queries in a block.
            block_kv: keys in a block.
            dense_from: queries and keys from here on (text) see and are seen by all.

        Raises:
            ValueError: no token, or no width.
        """
        if length < 1 or width < 1:
            raise ValueError(f"{length=}, {width=}: both must be 1 or more")
        q = np.arange(-(-length // block_q))[:, None] * block_q
        k = np.arange(-(-length // block_kv))[None, :] * block_kv
        q_last, k_last = (
            np.minimum(start + size, length) - 1 for start, size in ((q, block_q), (k, block_kv))
        )
        listed = (k - q_last < width) & (q - k_last < width)
        if dense_from is not None:
            listed = listed | (q_last >= dense_from) | (k_last >= dense_from)
        return cls.from_block_map(listed[None], block_q=block_q, block_kv=block_kv)

    @property
    def q_blocks(self) -> int:
        """Blocks of queries."""
        return self.counts.shape[-1]

    def block_map(self) -> Bool[Array, "B H Q K"]:
        """True where a block is listed."""
        listed = jnp.arange(self.indices.shape[-1])[None, None, None] < self.counts[..., None]
        hits = jax.nn.one_hot(self.indices, self.kv_blocks, dtype=jnp.bool_)
        return (hits & listed[..., None]).any(axis=-2)

    def complement(self) -> "BlockLists":
        """The blocks that are not listed; some lists may be empty."""
        return BlockLists.from_block_map(
            ~self.block_map(), block_q=self.block_q, block_kv=self.block_kv
        )

    def coarsen(self, block_q: int, block_kv: int) -> "BlockLists":
        """Lists for larger blocks: the union of what their parts see, so that nothing is lost.

        Raises:
            ValueError: the new sizes are not multiples of the old ones.
        """
        if block_q % self.block_q or block_kv % self.block_kv:
            raise ValueError(
                f"blocks of {self.block_q} x {self.block_kv} do not make up {block_q} x {block_kv}"
            )
        rows, columns = block_q // self.block_q, block_kv // self.block_kv
        fine = self.block_map()
        padding = ((0, 0), (0, 0), (0, -self.q_blocks % rows), (0, -self.kv_blocks % columns))
        fine = jnp.pad(fine, padding)
        parts = fine.reshape(
            *fine.shape[:2], fine.shape[2] // rows, rows, fine.shape[3] // columns, columns
        )
        return BlockLists.from_block_map(parts.any(axis=(3, 5)), block_q=block_q, block_kv=block_kv)

    def executed_density(self) -> Float[Array, ""]:
        """Listed blocks over all blocks: the share that a kernel computes, which may differ from the one asked for."""
        return self.counts.astype(jnp.float32).mean() / jnp.float32(self.kv_blocks)


def _repeat_last(
    indices: Int[Array | np.ndarray, "B H Q K"],
    counts: Int[Array | np.ndarray, "B H Q"],
    xp: ModuleType,
) -> Int[Array | np.ndarray, "B H Q K"]:
    """Overwrite entries past the count with the last valid entry, or 0 in an empty list."""
    places = xp.arange(indices.shape[-1], dtype=xp.int32)
    places = places.reshape((1,) * counts.ndim + (-1,))
    last = xp.maximum(counts - 1, 0)[..., None]
    repeated = xp.take_along_axis(indices, xp.minimum(places, last), axis=-1)
    return xp.where(counts[..., None] > 0, repeated, xp.int32(0))
