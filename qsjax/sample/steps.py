"""The denoising step of each kind: dense, refresh or sparse, each with optional step skipping."""

import math
from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Bool, Float

from qsjax.dit import DiT, Modulation
from qsjax.dit.blocks import Attention, Context
from qsjax.residual import Gains, LayerState, refresh_attention, sparse_attention
from qsjax.sample.cache import where_it_belongs
from qsjax.sample.patterns import pattern_for, token_grid
from qsjax.sample.skip import skipping
from qsjax.sample.state import Blocks, Cache, Memory, Slot
from qsjax.sample.step import Conditions, Step, euler_step
from qsjax.settings import DENSE, REFRESH, SamplingPlan, SparsePlan

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
        attention = _attention(plan.sparse, kind, dit, latents.shape, step.gains, axis)
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


def _attention(
    sparse: SparsePlan,
    kind: str,
    dit: DiT,
    latents: tuple[int, ...],
    gains: Gains,
    axis: str | None,
) -> Attention:
    attend: Callable[..., tuple[Array, LayerState]] = (
        partial(refresh_attention, axis=axis) if kind == REFRESH else sparse_attention
    )
    video, implementation = math.prod(token_grid(dit.config, latents)), dit.kernels.sparse_attention

    def attention(
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B L"],
        state: Slot,
    ) -> tuple[Array, Slot]:
        pattern = pattern_for(sparse, dit.config, latents, q.shape[1] - video)
        run = partial(
            attend,
            pattern,
            sparse.residual,
            gains,
            scores=sparse.scores,
            implementation=implementation,
        )
        if state.dense is None:
            out, layer = run(q, k, v, kv_valid, state.layer)
            return out, state._replace(layer=layer)

        def dense() -> tuple[Array, LayerState]:
            return dit.dense_attention(q, k, v, kv_valid, ())[0], state.layer

        out, layer = jax.lax.cond(state.dense, dense, lambda: run(q, k, v, kv_valid, state.layer))
        # A sparse step does not change the state: return the same object so that the scan skips the write-back.
        return out, state._replace(layer=layer) if kind == REFRESH else state

    return attention
