"""The denoising step of each kind: dense, refresh or sparse, each with optional step skipping."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
from jaxtyping import Array, Bool, Float

from qsjax.dit import DiT, Modulation
from qsjax.dit.blocks import Context
from qsjax.dit.heads import HeadSource
from qsjax.residual import Gains, Heads, LayerState, Made, refresh, sparse, to_make
from qsjax.sample.cache import where_it_belongs
from qsjax.sample.patterns import pattern_for, token_grid
from qsjax.sample.skip import skipping
from qsjax.sample.state import Blocks, Cache, Memory, Slot
from qsjax.sample.step import Conditions, Step, euler_step
from qsjax.settings import DENSE, REFRESH, SamplingPlan, SparsePlan
from qsjax.sparse import Pattern

Out = TypeVar("Out")

CACHE = 2
"""Position of the cache among a step's arguments after `plan` and `kind`. The cache may be overwritten: jit with
`donate_argnums=CACHE`."""


def denoise_step(
    plan: SamplingPlan,
    kind: str,
    dit: DiT,
    latents: Float[Array, "B C T H W"],
    cache: Cache | None,
    step: Step,
    conditions: Conditions,
    *,
    axis: str | None = None,
) -> tuple[Float[Array, "B C T H W"], Cache | None]:
    """One Euler step as a pure function: jit it with `plan` and `kind` fixed.

    Args:
        plan: the sampling plan.
        kind: "dense", "refresh" or "sparse".
        dit: the transformer.
        latents: latents before the step.
        cache: the cache from the previous step, or from `empty_cache`; None where the plan needs no cache.
        step: the numbers of the step, from `schedule`.
        conditions: the result of `prepare`.
        axis: mesh axis of devices that share the tokens; then this computes one device's part (`qsjax.sample.sharded`).

    Returns:
        Latents and cache after the step.
    """
    memories = (Memory(), Memory()) if cache is None else where_it_belongs(plan, cache)
    attention = None
    if kind != DENSE:
        assert plan.sparse is not None  # the only plans with other kinds
        assert step.gains is not None  # `schedule` makes them for such a plan
        attention = _Sparse(plan.sparse, kind, dit, latents.shape, step.gains, axis)
    writes = kind == REFRESH
    blocks = _blocks(dit, opens=attention is not None)
    if plan.skip is not None:
        assert step.allowed is not None  # `schedule` makes it for such a plan
        blocks = skipping(blocks, plan.skip, step.allowed, writes=writes, axis=axis)
    latents, memories = euler_step(
        plan,
        dit,
        latents,
        step,
        conditions,
        memories,
        blocks=blocks,
        attention=attention,
        axis=axis,
    )
    return latents, None if cache is None else memories


def _blocks(dit: DiT, *, opens: bool) -> Blocks:
    """All blocks as a function; if `opens`, the state of the attention slot is passed through them and updated."""

    def blocks(
        img: Array, txt: Array, context: Context, row: Modulation, memory: Memory
    ) -> tuple[Array, Memory]:
        img, slot = dit.through_blocks(img, txt, context, row, memory.slot if opens else ())
        return img, memory._replace(slot=slot) if opens else memory

    return blocks


@dataclass(frozen=True)
class _Sparse:
    """Sparse attention for the slot, or a refresh of its lists and cache.

    Attributes:
        sparse: the plan.
        kind: "refresh" or "sparse".
        dit: the transformer.
        latents: shape of the latents.
        gains: of the step.
        axis: mesh axis of devices that share the heads.
    """

    sparse: SparsePlan
    kind: str
    dit: DiT
    latents: tuple[int, ...]
    gains: Gains
    axis: str | None

    def __call__(
        self,
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B L"],
        state: Slot,
    ) -> tuple[Array, Slot]:
        """See `qsjax.dit.blocks.Attention`."""
        return self._attend(
            self._pattern(q.shape[1]),
            Made(q, k, v, kv_valid),
            lambda: self.dit.dense_attention(q, k, v, kv_valid, ())[0],
            state,
        )

    def from_heads(
        self, source: HeadSource, kv_valid: Bool[Array, "B L"], state: Slot
    ) -> tuple[tuple[Array, ...], Slot]:
        """See `qsjax.dit.blocks.ArrangingAttention`."""
        pattern = self._pattern(kv_valid.shape[1])
        heads = to_make(pattern, source, kv_valid, self.dit.kernels.sparse_attention)
        if heads is None:
            out, state = self(*source.plain(), kv_valid, state)
            return source.divided(out), state
        return self._attend(
            pattern,
            heads,
            lambda: self.dit.dense_attention.from_heads(source, kv_valid, ())[0],
            state,
        )

    def _pattern(self, tokens: int) -> Pattern:
        video = math.prod(token_grid(self.dit.config, self.latents))
        return pattern_for(self.sparse, self.dit.config, self.latents, tokens - video)

    def _attend(
        self, pattern: Pattern, heads: Heads[Out], dense: Callable[[], Out], state: Slot
    ) -> tuple[Out, Slot]:
        attend: Callable[..., tuple[Out, LayerState]] = (
            partial(refresh, axis=self.axis) if self.kind == REFRESH else sparse
        )
        run = partial(
            attend,
            pattern,
            self.sparse.residual,
            self.gains,
            heads,
            state.layer,
            scores=self.sparse.scores,
            implementation=self.dit.kernels.sparse_attention,
        )
        if state.dense is None:
            out, layer = run()
            return out, state._replace(layer=layer)
        out, layer = jax.lax.cond(state.dense, lambda: (dense(), state.layer), run)
        # A sparse step does not change the state: return the same object so that the scan skips the write-back.
        return out, state._replace(layer=layer) if self.kind == REFRESH else state
