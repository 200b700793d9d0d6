"""A run on a mesh of devices: blocks are sharded by tokens, attention by heads; each device caches its own heads."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from qsjax.dit import DiT
from qsjax.parallel import AXIS, check_heads, gathering
from qsjax.residual import LayerState
from qsjax.residual.lowrank import Factors
from qsjax.residual.store import Stored
from qsjax.sample.cache import empty_cache
from qsjax.sample.state import Cache, Memory, Skipped, Slot
from qsjax.sample.step import Conditions, Step, prepare
from qsjax.sample.steps import denoise_step
from qsjax.settings import SamplingPlan
from qsjax.text import EncodedPrompt

Tree = TypeVar("Tree")

_BY_HEAD = P(None, None, AXIS)
"""Sharding of state tensors with a head axis: [layers, B, H, ...]."""


def sharded_step(
    plan: SamplingPlan, kind: str, mesh: Mesh, cache: Cache | None, weights: DiT
) -> Callable[..., tuple[Array, Cache | None]]:
    """`denoise_step` on a mesh, to be jitted; arguments and results are global arrays.

    Args:
        plan: the sampling plan.
        kind: kind of the step.
        mesh: a mesh from `qsjax.parallel.make_mesh`.
        cache: the run's cache, or its shapes; None where the plan needs no cache.
        weights: partition specs of the weights, from `qsjax.parallel.weight_specs`.

    Returns:
        `step(dit, latents, cache, step, conditions)`, which raises InputError if the number of devices does not divide the video's
        tokens.
    """

    def local_step(
        dit: DiT, latents: Array, cache: Cache | None, step: Step, conditions: Conditions
    ) -> tuple[Array, Cache | None]:
        gathered = gathering(dit, weights)
        return denoise_step(plan, kind, gathered, latents, cache, step, conditions, axis=AXIS)

    # Text and latents are replicated: they are small, a few megabytes.
    carry = (P(), cache_specs(cache))
    return jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(weights, *carry, P(), P()),
        out_specs=carry,
        check_vma=False,
    )


def sharded_prepare(plan: SamplingPlan, mesh: Mesh, weights: DiT) -> Callable[..., Conditions]:
    """`prepare` on a mesh, to be jitted: `prepare(dit, text, negative)`. Every device computes the whole modulation table.

    Args:
        plan: the sampling plan.
        mesh: a mesh from `qsjax.parallel.make_mesh`.
        weights: partition specs of the weights, from `qsjax.parallel.weight_specs`.
    """

    def local_prepare(dit: DiT, text: EncodedPrompt, negative: EncodedPrompt | None) -> Conditions:
        return prepare(plan, gathering(dit, weights), text, negative)

    return jax.shard_map(
        local_prepare, mesh=mesh, in_specs=(weights, P(), P()), out_specs=P(), check_vma=False
    )


def sharded_cache(
    plan: SamplingPlan, mesh: Mesh, dit: DiT, latents: tuple[int, ...], conditions: Conditions
) -> Cache:
    """An empty cache on a mesh, created in shards: no device ever holds all of it.

    Raises:
        InputError: attention is sparse, and the number of devices does not divide its heads.
    """
    if plan.sparse is not None:
        check_heads(mesh, dit.config.num_heads)
    make = partial(empty_cache, plan, latents=latents)
    shapes = jax.eval_shape(lambda dit, given: make(dit, conditions=given), dit, conditions)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        cache_specs(shapes),
        is_leaf=lambda leaf: isinstance(leaf, P),
    )
    return jax.jit(lambda dit, given: make(dit, conditions=given), out_shardings=shardings)(
        dit, conditions
    )


def cache_specs(cache: Cache | None) -> Cache | None:
    """Partition specs of a cache: a tree of its structure with a spec for each leaf."""
    if cache is None:
        return None
    cond, uncond = cache
    return _memory_specs(cond), _memory_specs(uncond)


def _memory_specs(memory: Memory) -> Memory:
    slot, skipped = memory.slot, None
    if slot:
        slot = Slot._make((_layer_specs(slot.layer), *map(_replicated, slot[1:])))
    if memory.skipped is not None:
        skipped = Skipped._make((P(None, AXIS), P(None, AXIS), P(), P()))
    return Memory(slot, skipped, _replicated(memory.adaptive))


def _layer_specs(layer: LayerState) -> LayerState:
    """Specs by head, except for the tokens' low-rank factor `u`: all heads of a layer share it, so it is replicated."""

    def change_specs(change: Stored | Factors | None) -> Stored | Factors | None:
        return Factors._make((P(), _BY_HEAD)) if isinstance(change, Factors) else _by_head(change)

    specs = _by_head(layer._replace(change=None, bend=None))
    return specs._replace(change=change_specs(layer.change), bend=change_specs(layer.bend))


def _replicated(tree: Tree) -> Tree:
    return jax.tree.map(lambda _: P(), tree)


def _by_head(tree: Tree) -> Tree:
    return jax.tree.map(lambda _: _BY_HEAD, tree)
