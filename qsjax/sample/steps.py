"""The denoising step of each kind: dense, refresh, sparse, or adaptive, each but the last with optional step skipping."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from qsjax.dit import DiT, Modulation
from qsjax.dit.blocks import Context
from qsjax.dit.heads import HeadSource
from qsjax.residual import Gains, Heads, LayerState, Made, picked, refresh, sparse, to_make
from qsjax.sample.adaptive import decided, is_due, present_gains
from qsjax.sample.cache import where_it_belongs
from qsjax.sample.drift import attention_drift
from qsjax.sample.patterns import pattern_for, token_grid
from qsjax.sample.skip import skipping
from qsjax.sample.state import Blocks, Cache, Memory, Slot
from qsjax.sample.step import Conditions, Step, euler_step
from qsjax.settings import ADAPTIVE, DENSE, REFRESH, SPARSE, SamplingPlan, SparsePlan
from qsjax.sparse import Pattern
from qsjax.sparse.profile import profile_rows

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
        kind: "dense", "refresh", "sparse" or "adaptive".
        dit: the transformer.
        latents: latents before the step.
        cache: the cache from the previous step, or from `empty_cache`; None where the plan needs no cache.
        step: the numbers of the step, from `schedule`.
        conditions: the result of `prepare`.
        axis: mesh axis of devices that share the tokens; then this computes one device's part (`qsjax.sample.sharded`).

    Returns:
        Latents and cache after the step.
    """
    if kind == ADAPTIVE:
        assert cache is not None  # the plan remembers
        assert step.limits is not None  # `schedule` makes them for such a plan

        def as_kind(kind: str) -> Callable[[], tuple[Array, Cache | None]]:
            return lambda: denoise_step(
                plan, kind, dit, latents, cache, step, conditions, axis=axis
            )

        due = is_due(step.limits, step.index, cache)
        return jax.lax.cond(due, as_kind(REFRESH), as_kind(SPARSE))
    memories = (Memory(), Memory()) if cache is None else where_it_belongs(plan, cache)
    attention = None
    if kind != DENSE:
        assert plan.sparse is not None  # the only plans with other kinds
        gains, adaptive = step.gains, memories[0].adaptive
        if step.limits is not None and adaptive is not None:
            gains = present_gains(step.limits, adaptive)
        assert gains is not None  # `schedule` makes them for such a plan
        attention = _Sparse(plan.sparse, kind, dit, latents.shape, gains, axis)
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
    if step.limits is not None and kind != DENSE:
        cond, uncond = (decided(kind, step.limits, step.index, memory) for memory in memories)
        memories = cond, uncond
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
        out, state = self._attend(
            self._pattern(q.shape[1]),
            Made(q, k, v, kv_valid),
            lambda: self.dit.dense_attention(q, k, v, kv_valid, ())[0],
            state,
        )
        if self.kind == REFRESH or state.drift is None:
            return out, state
        rows = profile_rows(self._video, self.sparse.sparsity.profiled_rows)
        drift = attention_drift(q, k, v, kv_valid, out, rows, self.axis)
        return out, state._replace(drift=drift)

    def from_heads(
        self, source: HeadSource, kv_valid: Bool[Array, "B L"], state: Slot
    ) -> tuple[tuple[Array, ...], Slot]:
        """See `qsjax.dit.blocks.ArrangingAttention`."""
        pattern = self._pattern(kv_valid.shape[1])
        heads = to_make(pattern, source, kv_valid, self.dit.kernels.sparse_attention)
        # The profile that chooses in every step and the one that measures drift would make heads three times.
        measures = self.kind != REFRESH and state.drift is not None
        if heads is None or (measures and pattern.config.every_step):
            out, state = self(*source.plain(), kv_valid, state)
            return source.divided(out), state
        choice = state.layer.choice
        if measures:
            heads = heads.ready(pattern, choice)
        out, state = self._attend(
            pattern,
            heads,
            lambda: self.dit.dense_attention.from_heads(source, kv_valid, ())[0],
            state,
        )
        if not measures:
            return out, state
        rows = profile_rows(self._video, self.sparse.sparsity.profiled_rows)
        tokens, q = heads.arranged(pattern, choice), heads.queries(pattern, choice, rows)
        # Full attention of a row does not depend on the order of the keys.
        drift = attention_drift(
            q,
            tokens.keys,
            tokens.values,
            tokens.valid,
            picked(out[0], rows).reshape(q.shape),
            np.arange(len(rows)),
            self.axis,
        )
        return out, state._replace(drift=drift)

    @property
    def _video(self) -> int:
        """Tokens of the video."""
        return math.prod(token_grid(self.dit.config, self.latents))

    def _pattern(self, tokens: int) -> Pattern:
        return pattern_for(self.sparse, self.dit.config, self.latents, tokens - self._video)

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
