"""A run on a mesh of devices: tokens are shared in the blocks, heads in attention; the cache lies with its heads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qsjax.dit import DiT
from qsjax.parallel import AXIS, check_heads, gathering
from qsjax.residual import LayerState
from qsjax.sample.cache import empty_cache
from qsjax.sample.state import Cache, Memory, Skipped, Slot
from qsjax.sample.step import Conditions, prepare
from qsjax.sample.steps import denoise_step
from qsjax.settings import SamplingPlan
from qsjax.text import EncodedPrompt

_BY_HEAD = P(None, None, AXIS)
"""Of everything that a layer's state has for each head: layers, batch, heads."""


def sharded_step(
    plan: SamplingPlan, kind: str, mesh: Mesh, cache: Any, weights: Any
) -> Callable[..., Any]:
    """`denoise_step` on a mesh, to be jitted; arguments and results are global arrays.

    Args:
        plan: of the run.
        kind: of the step.
        mesh: of `qsjax.parallel.make_mesh`.
        cache: of the run, or its shapes; None where the plan remembers nothing.
        weights: how they are cut, of `qsjax.parallel.weight_specs`.

    Returns:
        `step(dit, latents, cache, step, conditions)`. Raises InputError where the video's tokens do not divide among the devices.
    """

    def one(dit: DiT, *given: Any) -> Any:
        return denoise_step(plan, kind, gathering(dit, weights), *given, axis=AXIS)

    # Text is whole on every device; latents too, which are some megabytes.
    carry = (P(), cache_specs(cache))
    return jax.shard_map(
        one, mesh=mesh, in_specs=(weights, *carry, P(), P()), out_specs=carry, check_vma=False
    )


def sharded_prepare(plan: SamplingPlan, mesh: Mesh, weights: Any) -> Callable[..., Conditions]:
    """`prepare` on a mesh, to be jitted: `prepare(dit, text, negative)`. Every device makes the whole table.

    Args:
        plan: of the run.
        mesh: of `qsjax.parallel.make_mesh`.
        weights: how they are cut, of `qsjax.parallel.weight_specs`.
    """

    def one(dit: DiT, text: EncodedPrompt, negative: EncodedPrompt | None) -> Conditions:
        return prepare(plan, gathering(dit, weights), text, negative)

    return jax.shard_map(
        one, mesh=mesh, in_specs=(weights, P(), P()), out_specs=P(), check_vma=False
    )


def sharded_cache(
    plan: SamplingPlan, mesh: Mesh, dit: DiT, latents: tuple[int, ...], conditions: Conditions
) -> Cache:
    """An empty cache on a mesh; no device ever has all of it.

    Raises:
        InputError: attention is sparse, and its heads do not divide among the devices.
    """
    if plan.sparse is not None:
        check_heads(mesh, dit.config.num_heads)
    make = partial(empty_cache, plan, latents=latents)
    shapes = jax.eval_shape(lambda dit, known: make(dit, conditions=known), dit, conditions)
    places = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        cache_specs(shapes),
        is_leaf=lambda leaf: isinstance(leaf, P),
    )
    return jax.jit(lambda dit, known: make(dit, conditions=known), out_shardings=places)(
        dit, conditions
    )


def cache_specs(cache: Any) -> Any:
    """How a cache is shared, as a tree of its structure."""
    if cache is None:
        return None
    return tuple(
        Memory(
            memory.slot
            and Slot(_layer_specs(memory.slot.layer), None if memory.slot.dense is None else P()),
            None if memory.skipped is None else Skipped(P(None, AXIS), P(None, AXIS), P(), P()),
        )
        for memory in cache
    )


def _layer_specs(layer: LayerState) -> LayerState:
    """By head; the low-rank factors' tokens are shared by a layer's heads, and so is that part of them by all devices."""

    def of_change(change: Any) -> Any:
        if change is None:
            return None
        return change._replace(u=P(), v=_BY_HEAD) if hasattr(change, "u") else _by_head(change)

    specs = _by_head(layer._replace(change=None, bend=None))
    return specs._replace(change=of_change(layer.change), bend=of_change(layer.bend))


def _by_head(tree: Any) -> Any:
    return jax.tree.map(lambda _: _BY_HEAD, tree)
