"""The empty cache of a run, for sparse attention and for step skipping, and where its tensors are placed."""

import math

import jax
import jax.numpy as jnp

from pallas_kernels import targets
from qsjax.dit import DiT
from qsjax.errors import InputError
from qsjax.residual import empty_state, placed
from qsjax.sample.adaptive import nothing_decided
from qsjax.sample.patterns import pattern_for, token_grid
from qsjax.sample.skip import nothing_skipped
from qsjax.sample.state import Cache, Memory, Slot
from qsjax.sample.step import Conditions
from qsjax.settings import SamplingPlan, SparsePlan


def empty_cache(
    plan: SamplingPlan, dit: DiT, latents: tuple[int, ...], conditions: Conditions
) -> Cache:
    """A cache of the right shapes, before the first step.

    Args:
        plan: the sampling plan.
        dit: the transformer.
        latents: shape of the latents, [B, C, T, H, W].
        conditions: conditions of the run's prompts.

    Raises:
        InputError: a dense layer that the model does not have, or a cache on the host of a GPU.
    """

    def memory(text: int) -> Memory:
        slot, skipped, adaptive = (), None, None
        if plan.sparse is not None:
            slot = _empty_slot(plan.sparse, dit, latents, text)
            adaptive = nothing_decided(plan.steps) if plan.sparse.drift else None
        if plan.skip is not None:
            skipped = nothing_skipped(dit, latents[0], math.prod(token_grid(dit.config, latents)))
        return Memory(slot, skipped, adaptive)

    negative = conditions.negative
    return (
        memory(conditions.text.text.shape[1]),
        Memory() if negative is None else memory(negative.text.shape[1]),
    )


def where_it_belongs(plan: SamplingPlan, cache: Cache) -> Cache:
    """The cache, placed as the plan says: on the device, or on its host.

    A program that returns the cache unchanged needs this too: XLA rejects host inputs returned without a placement, so
    annotate them.
    """
    if plan.sparse is None:
        return cache
    residual = plan.sparse.residual

    def with_placement(memory: Memory) -> Memory:
        if not memory.slot:
            return memory
        layer = placed(residual, memory.slot.layer)
        return memory._replace(slot=memory.slot._replace(layer=layer))

    cond, uncond = cache
    return with_placement(cond), with_placement(uncond)


def _empty_slot(sparse: SparsePlan, dit: DiT, latents: tuple[int, ...], text: int) -> Slot:
    if sparse.residual.place == "host" and targets.current().backend == "gpu":
        raise InputError(
            "the residual cache cannot be on a GPU's host: XLA would copy all of it to the device before the loop over layers;"
            " leave it on the device (residual.place), in a smaller store if need be (residual.store int4, residual.budget)"
        )
    config = dit.config
    layers = config.num_blocks
    unknown = [layer for layer in sparse.dense_layers if layer >= layers]
    if unknown:
        raise InputError(f"dense_layers={unknown}: the model has layers 0 to {layers - 1}")
    pattern = pattern_for(sparse, config, latents, text)
    state = empty_state(
        sparse.residual, pattern, latents[0], config.num_heads, config.head_dim, dit.dtype
    )
    stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (layers, *leaf.shape)), state)
    dense = None
    if sparse.dense_layers:
        dense = jnp.zeros(layers, jnp.bool_).at[jnp.asarray(sparse.dense_layers)].set(True)
    drift = jnp.zeros((layers, latents[0]), jnp.float32) if sparse.drift else None
    return Slot(placed(sparse.residual, stacked), dense, drift)
