"""Steps that hand each other more than latents: the cache of sparse attention, and what is known of steps that are left out."""

import math
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels import targets
from qsjax.dit import DiT, DiTConfig
from qsjax.dit.attention import dense_attention
from qsjax.dit.blocks import Attention
from qsjax.errors import InputError
from qsjax.residual import (
    LayerState,
    bytes_of,
    empty_state,
    placed,
    refresh_attention,
    sparse_attention,
)
from qsjax.sample.plan import Plan
from qsjax.sample.skip import nothing_skipped
from qsjax.sample.sparse import DENSE, REFRESH, SparsePlan
from qsjax.sample.step import Conditions, Memory, Step, euler_step
from qsjax.sparse import Pattern, Sparsity
from qsjax.sparse.layout import Sizes


class Slot(NamedTuple):
    """The attention slot's state, stacked over layers.

    Attributes:
        layer: lists and cache.
        dense: whether a layer is dense in every step, bool; None where none is.
    """

    layer: LayerState
    dense: Any = None


Cache = tuple[Memory, Memory]
"""Of the prompt and of the negative prompt; an empty one without it."""


def pattern_for(
    plan: SparsePlan, config: DiTConfig, latents: tuple[int, ...], text: int
) -> Pattern:
    """The pattern at a size.

    Args:
        plan: of the mask.
        config: of the patches.
        latents: shape [B, C, T, H, W].
        text: tokens of the prompt, padding included.
    """
    return _pattern(plan.sparsity, _grid(config, latents), text)


@lru_cache(maxsize=8)
def _pattern(sparsity: Sparsity, grid: Sizes, text: int) -> Pattern:
    """Kept: a run asks for its pattern in every trace, and a memory plan for every change that it tries."""
    return Pattern(sparsity, grid, text)


def _grid(config: DiTConfig, latents: tuple[int, ...]) -> Any:
    """Video tokens along time, height and width."""
    return tuple(n // patch for n, patch in zip(latents[2:], config.patch_size, strict=True))


def empty_cache(plan: Plan, dit: DiT, latents: tuple[int, ...], conditions: Conditions) -> Cache:
    """A cache of the right shapes, before the first step.

    Raises:
        InputError: a dense layer that the model does not have; a cache on the host of a GPU.
    """

    def memory(text: int) -> Memory:
        skipped = None
        if plan.skip is not None:
            tokens = math.prod(_grid(dit.config, latents))
            skipped = nothing_skipped(dit, latents[0], tokens)
        return Memory(() if plan.sparse is None else _slot(plan, dit, latents, text), skipped)

    ours, negative = memory(conditions.text.text.shape[1]), conditions.negative
    return ours, Memory() if negative is None else memory(negative.text.shape[1])


def _slot(plan: Plan, dit: DiT, latents: tuple[int, ...], text: int) -> Slot:
    sparse, config = _sparse(plan), dit.config
    if sparse.residual.place == "host" and targets.current().backend == "gpu":
        raise InputError(
            "the residual cache cannot be on a GPU's host: XLA copies it whole there before a loop over layers; leave it on the"
            " device (residual.place), in a smaller store if need be (residual.store int4, residual.budget)"
        )
    layers = config.num_blocks
    wrong = [layer for layer in sparse.dense_layers if layer >= layers]
    if wrong:
        raise InputError(f"dense_layers={wrong}: the model has layers 0 to {layers - 1}")
    pattern = pattern_for(sparse, config, latents, text)
    one = empty_state(
        sparse.residual, pattern, latents[0], config.num_heads, config.head_dim, dit.dtype
    )
    stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (layers, *leaf.shape)), one)
    dense = None
    if sparse.dense_layers:
        dense = jnp.zeros(layers, jnp.bool_).at[jnp.asarray(sparse.dense_layers)].set(True)
    return _placed(plan, Slot(stacked, dense))


def cache_bytes(config: DiTConfig, plan: Plan, latents: tuple[int, ...], text: int) -> int:
    """Of lists and residual cache of all layers and prompts, with factors in bfloat16; nothing is allocated.

    Args:
        config: of the transformer.
        plan: of the run.
        latents: shape [B, C, T, H, W].
        text: tokens of each prompt, padding included.
    """
    sparse = _sparse(plan)
    pattern = pattern_for(sparse, config, latents, text)
    one = jax.eval_shape(
        lambda: empty_state(
            sparse.residual, pattern, latents[0], config.num_heads, config.head_dim, jnp.bfloat16
        )
    )
    return (2 if plan.uses_negative else 1) * config.num_blocks * bytes_of(one)


def within_budget(config: DiTConfig, plan: Plan, latents: tuple[int, ...], text: int) -> Plan:
    """The plan with the most exact store whose cache keeps to the residual's budget; unchanged without a budget.

    Raises:
        InputError: not even 4 bits do; says how much they take.
    """
    sparse = plan.sparse
    if sparse is None or not sparse.residual.budget:
        return plan
    sizes = {}
    for store in ("float32", "bfloat16", "int8", "int4"):
        residual = replace(sparse.residual, store=store, budget=0)
        made = replace(plan, sparse=replace(sparse, residual=residual))
        sizes[store] = cache_bytes(config, made, latents, text)
        if sizes[store] <= sparse.residual.budget:
            return made
    raise InputError(
        f"a residual cache of {sparse.residual.budget:,} bytes is asked for; in 4 bits this video's takes {sizes['int4']:,}: give it"
        " more, or take residual policy none"
    )


def step_of_kind(
    plan: Plan,
    kind: str,
    dit: DiT,
    carry: tuple[Float[Array, "B C T H W"], Any],
    step: Step,
    conditions: Conditions,
    *,
    axis: str | None = None,
) -> tuple[Float[Array, "B C T H W"], Any]:
    """One Euler step of any kind on (latents, cache); see `denoise_step`. A plan that remembers nothing has None for a cache.

    With an `axis` of devices it is one device's part of the step: `qsjax.sample.sharded`.
    """
    latents, cache = carry
    if cache is None:
        memories = (Memory(), Memory())
        return euler_step(plan, dit, latents, step, conditions, None, memories, axis=axis)[0], None
    # Also where nothing reads it: what comes from the host and does not say so may not leave a program.
    cache = tuple(
        memory._replace(slot=memory.slot and _placed(plan, memory.slot)) for memory in cache
    )
    attention = None
    if kind != DENSE:
        attention = _attention(plan, kind, dit.config, latents.shape, step, axis)
    refresh = kind == REFRESH
    return euler_step(
        plan, dit, latents, step, conditions, attention, cache, writes=refresh, axis=axis
    )


def _attention(
    plan: Plan,
    kind: str,
    config: DiTConfig,
    latents: tuple[int, ...],
    step: Step,
    axis: str | None,
) -> Attention:
    sparse, gains = _sparse(plan), step.gains
    assert gains is not None
    attend: Any = partial(refresh_attention, axis=axis) if kind == REFRESH else sparse_attention

    def attention(
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B L"],
        state: Slot,
    ) -> tuple[Array, Slot]:
        text = q.shape[1] - math.prod(_grid(config, latents))
        pattern = pattern_for(sparse, config, latents, text)
        run = partial(attend, pattern, sparse.residual, gains, scores=sparse.scores)
        if state.dense is None:
            out, layer = run(q, k, v, kv_valid, state.layer)
            return out, state._replace(layer=layer)

        def dense() -> tuple[Array, LayerState]:
            return dense_attention(q, k, v, kv_valid)[0], state.layer

        out, layer = jax.lax.cond(state.dense, dense, lambda: run(q, k, v, kv_valid, state.layer))
        # What a sparse step returns is what it was given; said so, it is not written back.
        return out, state._replace(layer=layer) if kind == REFRESH else state

    return attention


def _placed(plan: Plan, slot: Slot) -> Slot:
    return slot._replace(layer=placed(_sparse(plan).residual, slot.layer))


def _sparse(plan: Plan) -> SparsePlan:
    assert plan.sparse is not None
    return plan.sparse
