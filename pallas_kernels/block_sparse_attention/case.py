"""A call of attention for the benchmark: its lists, the least work it can do, and the part that a TPU's compiler profiles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pallas_kernels.block_sparse_attention import tpu
from pallas_kernels.block_sparse_attention.api import block_sparse_attention
from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.block_sparse_attention.scores import quantize
from pallas_kernels.block_sparse_attention.tiles import keys_per_step, steps_apart
from pallas_kernels.block_sparse_attention.tpu_kernel import Trips
from pallas_kernels.roofline import Program, Work, random_like, spec
from pallas_kernels.targets import Target

BAND_BLOCK = 128
"""Tokens in each block that a band is made of."""
# Rows of query blocks that are profiled; every row costs the same.
_PROFILED_ROWS = 8


@dataclass(frozen=True)
class AttentionCase:
    """Self-attention of one sample.

    Attributes:
        label: of the lists.
        tokens: of the sample, text last.
        heads: number of heads.
        head_dim: channels of a head.
        block_q, block_kv: of the lists.
        implementation: name of the implementation; "cudnn" is jax's dense attention, for comparison.
        listed: blocks of keys in every list; None is all.
        band: half width of a band of tokens, instead of `listed`; made of blocks of 128 and coarsened.
        text: with a band, the last tokens, which see all and are seen by all.
        dtype: of queries, keys and values.
        scores: "float" or "int8".
    """

    label: str
    tokens: int
    heads: int
    head_dim: int
    block_q: int
    block_kv: int
    implementation: str
    listed: int | None = None
    band: int | None = None
    text: int = 0
    dtype: str = "bfloat16"
    scores: str = "float"

    @property
    def name(self) -> str:
        """Lists, blocks and shape."""
        blocks, scores = (
            f"{self.block_q} x {self.block_kv}",
            ", int8 scores" * (self.scores == "int8"),
        )
        return f"{self.label}, blocks {blocks}, {self.tokens} tokens, {self.heads} x {self.head_dim}{scores}"

    @cached_property
    def lists(self) -> BlockLists:
        """Random blocks for every head if `listed` says how many; a band and full lists are shared by all heads."""
        q_blocks, kv_blocks = -(-self.tokens // self.block_q), -(-self.tokens // self.block_kv)
        if self.band is not None:
            fine = BlockLists.from_band(
                self.tokens, self.band, block_q=BAND_BLOCK, block_kv=BAND_BLOCK,
                dense_from=self.tokens - self.text,
            )  # fmt: skip
            return fine.coarsen(self.block_q, self.block_kv)
        block_map = np.ones((1, q_blocks, kv_blocks), np.bool_)
        if self.listed is not None:
            draws = np.random.default_rng(0).random((self.heads, q_blocks, kv_blocks))
            block_map = draws.argsort(axis=-1).argsort(axis=-1) < self.listed
        return BlockLists.from_block_map(block_map, block_q=self.block_q, block_kv=self.block_kv)

    @property
    def executed_density(self) -> float:
        """Listed blocks over all blocks."""
        return float(self.lists.executed_density())

    def steps(self, target: Target) -> int:
        """Steps of the TPU kernel's loops, over all heads: the last of a list may be partly empty."""
        gather = keys_per_step(target, self.lists) // self.block_kv
        counts = np.asarray(self.lists.counts)
        return int(np.ceil(counts / gather).sum()) * self.heads // counts.shape[1]

    def apart(self, target: Target) -> int:
        """Those of the steps whose blocks are fetched one by one."""
        gather = keys_per_step(target, self.lists) // self.block_kv
        apart = np.asarray(steps_apart(self.lists, gather))
        return int(apart.sum()) * self.heads // apart.shape[1]

    @property
    def work(self) -> Work:
        """Both products of the listed blocks, partial ones in full; queries, keys and values read, the result written."""
        counts = np.asarray(self.lists.counts)
        pairs = int(counts.sum()) * self.heads // counts.shape[1] * self.block_q * self.block_kv
        values = self.tokens * self.heads * self.head_dim
        size = jnp.dtype(self.dtype).itemsize
        return Work(4.0 * pairs * self.head_dim, self.dtype, 4.0 * values * size)

    def operands(self) -> tuple[Any, ...]:
        """Random queries, keys and values, and the lists."""
        x = spec(1, self.tokens, self.heads, self.head_dim, dtype=jnp.dtype(self.dtype))
        return (*random_like((x, x, x)), self.lists)

    def call(self, implementation: str) -> Callable[..., Any]:
        """The operation, with the padding and transpositions that the implementation needs."""

        def attend(q: Array, k: Array, v: Array, lists: BlockLists) -> Array | tuple[Array, Array]:
            if self.implementation == "cudnn":
                return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
            return block_sparse_attention(
                q, k, v, lists, scores=self.scores, implementation=implementation
            )

        return attend

    def program(self, target: Target) -> Program:
        """A few rows of one head over all keys, with a loop as long as the mean list, as many of whose steps fetch their blocks
        one by one, and without branches.

        The profiler counts neither branches nor loops of unknown length, and is too slow for a whole call. Only the
        kernel is compiled: the copies that put heads before tokens are not in the estimate.
        """
        gather = keys_per_step(target, self.lists) // self.block_kv
        steps, lists = self.steps(target), self.lists
        rows = lists.q_blocks * self.heads
        count = max(1, round(steps / rows))
        # The last step of a row is always fetched block by block here.
        trips = Trips(count, min(count, max(1, round(self.apart(target) / steps * count))))
        dtype = jnp.dtype(self.dtype)
        # The keys of all heads: those of a single head the compiler might keep in vector memory.
        k = spec(1, self.tokens, self.heads, self.head_dim, dtype=dtype)
        q = spec(1, _PROFILED_ROWS * self.block_q, self.heads, self.head_dim, dtype=dtype)
        profiled = BlockLists(
            spec(1, 1, _PROFILED_ROWS, lists.indices.shape[-1], dtype=jnp.int32),
            spec(1, 1, _PROFILED_ROWS, dtype=jnp.int32),
            self.block_q,
            self.block_kv,
            lists.kv_blocks,
        )

        def arrange(q: Array, k: Array, valid: Array, blocks: BlockLists) -> tpu.Arranged:
            v, scales = k, None
            if self.scores == "int8":
                q, k, scales, _ = quantize(q, k, valid)
            return tpu.arrange(
                q, k, v, valid, blocks, None, scales, gather=gather, scale=self.head_dim**-0.5
            )

        def launch(arranged: tpu.Arranged, blocks: BlockLists) -> tuple[Array, ...]:
            return tpu.launch(
                arranged, blocks, gather=gather, scale=self.head_dim**-0.5, target=target,
                trips=trips,
            )  # fmt: skip

        valid = spec(1, self.tokens, dtype=jnp.bool_)
        arranged = jax.eval_shape(arrange, q, k, valid, profiled)
        of_queries = (arranged.q, arranged.bound, arranged.scales and arranged.scales.q)
        queries, bound, q_scale = jax.tree.map(
            lambda x: spec(1, 1, *x.shape[2:], dtype=x.dtype), of_queries
        )
        arranged = arranged._replace(
            q=queries,
            bound=bound,
            bounded=spec(1, *arranged.bounded.shape[1:], dtype=arranged.bounded.dtype),
            scales=arranged.scales and arranged.scales._replace(q=q_scale),
        )
        once = 2.0 * self.tokens * self.heads * self.head_dim * dtype.itemsize
        fetched = 2 * gather * self.block_kv * self.head_dim * dtype.itemsize
        return Program(
            launch,
            (arranged, profiled),
            traffic=once + steps * fetched,
            repeats=steps / (_PROFILED_ROWS * count),
        )
