"""The calls of block-sparse attention that a layer makes, with the lengths of their lists, and a benchmark case for each.

The lists of most masks do not depend on queries and keys, so their lengths can be had without a device: attention runs with a
recorder in place of the kernel, and the compiler leaves out all that the lengths do not need.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pallas_kernels import BlockLists, targets
from pallas_kernels.block_sparse_attention import BLOCK_SPARSE_ATTENTION
from pallas_kernels.block_sparse_attention.case import AttentionCase
from pallas_kernels.block_sparse_attention.tiles import keys_per_step, steps_apart
from pallas_kernels.targets import Target
from qsjax.dit import DiTConfig
from qsjax.residual import Gains, empty_state, refresh_attention, sparse_attention
from qsjax.sample import SamplingPlan
from qsjax.sample.patterns import pattern_for, token_grid
from qsjax.settings import DENSE, REFRESH


@dataclass(frozen=True)
class ListedCall:
    """One call of the kernel.

    Attributes:
        queries, keys: tokens.
        heads, head_dim: of both.
        block_q, block_kv: of the lists.
        counts: lengths of the lists, by head (one entry if all heads share them) and block of queries.
        apart: steps of each list that fetch their blocks one by one; empty if that is not known, and all may.
        scores: "float" or "int8".
    """

    queries: int
    keys: int
    heads: int
    head_dim: int
    block_q: int
    block_kv: int
    counts: tuple[tuple[int, ...], ...] = ()
    apart: tuple[tuple[int, ...], ...] = ()
    scores: str = "float"

    @classmethod
    def of(cls, values: dict[str, Any]) -> "ListedCall":
        """From its fields as JSON has them."""
        lengths = {
            name: tuple(map(tuple, values[name])) for name in ("counts", "apart") if name in values
        }
        fields: dict[str, Any] = {**values, **lengths}
        return cls(**fields)

    @property
    def case(self) -> "ListedCase":
        """The call as a case for `pallas_kernels.estimate`."""
        return ListedCase(
            f"{self.queries} queries", self.keys, self.heads, self.head_dim, self.block_q, self.block_kv, "tpu",
            counts=self.counts, fetched_apart=self.apart, scores=self.scores,
        )  # fmt: skip


@dataclass(frozen=True)
class ListedCase(AttentionCase):
    """A case with the lengths of its lists, and how many of their steps fetch block by block: all that an estimate needs."""

    counts: tuple[tuple[int, ...], ...] = ()
    fetched_apart: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def lists(self) -> BlockLists:
        """Lists of those lengths, of the first blocks."""
        counts = np.asarray(self.counts, np.int32)[None]
        kv_blocks = -(-self.tokens // self.block_kv)
        indices = np.zeros((*counts.shape, int(counts.max())), np.int32)
        return BlockLists(
            indices, counts, block_q=self.block_q, block_kv=self.block_kv, kv_blocks=kv_blocks
        )

    def apart(self, target: Target) -> int:
        """Those of the steps whose blocks are fetched one by one; all of them if that is not known."""
        if not self.fetched_apart:
            return self.steps(target)
        return int(np.sum(self.fetched_apart)) * self.heads // len(self.fetched_apart)


def listed_calls(
    config: DiTConfig,
    plan: SamplingPlan,
    kind: str,
    target: Target,
    latents: tuple[int, int, int],
    text: int,
) -> list[ListedCall]:
    """The calls of one layer in a step of a kind; a dense one has no lists to find out about.

    Lists that are chosen while sampling count with their full length, which is exact for topk and an upper bound for topp.
    """
    sparse = plan.sparse
    if kind == DENSE or sparse is None:
        return []
    video = int(np.prod(token_grid(config, (1, 0, *latents))))
    x = jnp.zeros((1, video + text, config.num_heads, config.head_dim), jnp.bfloat16)
    valid = jnp.ones((1, video + text), jnp.bool_)
    run: Callable[..., Any] = refresh_attention if kind == REFRESH else sparse_attention
    calls: list[Recorded] = []

    def lengths(q: Array, k: Array, v: Array) -> list[tuple[Array, Array]]:
        residual, one = sparse.residual, jnp.ones((), jnp.float32)
        pattern = pattern_for(sparse, config, (1, 0, *latents), text)
        state = empty_state(residual, pattern, 1, config.num_heads, config.head_dim, x.dtype)
        with recorded(calls):
            run(pattern, residual, Gains(one, one), q, k, v, valid, state, scores=sparse.scores)
        return [(call.counts, call.apart) for call in calls]

    # The sizes of blocks may depend on the device, too.
    with targets.assumed(target):
        found = jax.jit(lengths)(x, x, x)
    return [call.known(*map(np.asarray, ones)) for call, ones in zip(calls, found, strict=True)]


class Recorded(NamedTuple):
    """A call while it is traced.

    Attributes:
        call: without its lists' lengths.
        counts: those lengths, int32 [B or 1, H or 1, blocks of queries].
        apart: steps that fetch block by block, likewise.
        longest: room for a list.
    """

    call: ListedCall
    counts: Array
    apart: Array
    longest: int

    def known(self, counts: np.ndarray, apart: np.ndarray) -> ListedCall:
        """The call with the lengths of the first sample; lists that are not chosen yet may become as long as there is room."""
        known = bool(counts.any())
        lengths = counts[0] if known else np.full_like(counts[0], self.longest)
        return replace(self.call, counts=_nested(lengths), apart=_nested(apart[0]) if known else ())


def _nested(lengths: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, lengths.tolist()))


@contextmanager
def recorded(calls: list[Recorded]) -> Iterator[None]:
    """Replace the TPU kernel: calls are written down, and give zeros."""

    def record(
        q: Array,
        k: Array,
        v: Array,
        kv_valid: Array,
        blocks: BlockLists,
        cache: object,
        **options: object,
    ) -> tuple[Array, Array]:
        batch, queries, heads, head_dim = q.shape
        sizes = (queries, k.shape[1], heads, head_dim, blocks.block_q, blocks.block_kv)
        scores = "float" if options.get("scales") is None else "int8"
        del kv_valid, cache
        counts, longest = jnp.asarray(blocks.counts), blocks.indices.shape[-1]
        gather = keys_per_step(targets.current(), blocks) // blocks.block_kv
        apart = steps_apart(blocks, gather)
        calls.append(Recorded(ListedCall(*sizes, scores=scores), counts, apart, longest))
        return jnp.zeros(q.shape, v.dtype), jnp.zeros((batch, heads, queries), jnp.float32)

    implementations: Any = BLOCK_SPARSE_ATTENTION.implementations
    before = implementations["tpu"]
    implementations["tpu"] = replace(before, function=record)
    try:
        yield
    finally:
        implementations["tpu"] = before
