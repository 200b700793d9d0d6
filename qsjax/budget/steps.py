"""The cost of one step of each kind: executed density, operations, bytes, and a lower bound of its time on each device."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax.numpy as jnp

from pallas_kernels import targets
from pallas_kernels.targets import Target
from qsjax.budget.devices import Device
from qsjax.budget.flops import StepFlops
from qsjax.budget.models import PlannedModel
from qsjax.budget.sampling import activation_bytes
from qsjax.budget.size import Size
from qsjax.budget.weights import Weights
from qsjax.dit import DiTConfig
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.sample import SamplingPlan
from qsjax.sample.cache_size import cache_bytes
from qsjax.sample.patterns import pattern_for
from qsjax.settings import ADAPTIVE, DENSE, REFRESH, SPARSE
from qsjax.sparse import Pattern


def executed_density(pattern: Pattern) -> float:
    """Share of the pairs of tokens that a sparse step computes (`Pattern.density`).

    Lists that are chosen while sampling count with their full length, which is exact for topk and an upper bound for topp. With the
    padding of tiles that a small video fills badly it would be more than all, and counts as all.
    """
    choice = pattern.empty(1, 1)
    if choice.indices is None:
        listed = int(jnp.sum(pattern.lists(choice).counts))
    else:
        listed = pattern.layouts[0].q_blocks * choice.indices.shape[-1]
    return min(1.0, pattern.density(listed))


def describe(config: DiTConfig, plan: SamplingPlan, latents: tuple[int, ...], text: int) -> str:
    """One sentence about a sparse run: its steps, what they compute, what they cache. "" for a dense run.

    Args:
        config: sizes of the transformer.
        plan: the sampling plan.
        latents: shape of the latents, [B, C, T, H, W].
        text: tokens of the prompt, padding included.
    """
    if plan.sparse is None:
        return ""
    pattern, kinds = pattern_for(plan.sparse, config, latents, text), plan.kinds
    size = Size(
        frames=0, height=0, width=0, video_tokens=pattern.layouts[0].tokens, text_tokens=text
    )
    flops, density = StepFlops.count(config, size), executed_density(pattern)
    steps, adaptive = "", kinds.count(ADAPTIVE)
    refreshing, sparse = kinds.count(REFRESH), kinds.count(SPARSE)
    if adaptive:
        # As many as there can be.
        refreshing += adaptive // plan.sparse.least_interval
        sparse += adaptive - adaptive // plan.sparse.least_interval
        steps = "at most "
    full = kinds.count(DENSE) + refreshing
    share = (full * flops.total() + sparse * flops.total(density)) / (len(kinds) * flops.total())
    cached = cache_bytes(config, plan, latents, text)
    residual = plan.sparse.residual
    kept = (
        f"{residual.policy}, {residual.store}, {cached / 1e6:,.1f} MB"
        if residual.rule.order
        else "none"
    )
    return (
        f"{plan.sparse.sparsity.mask} attention: {kinds.count(DENSE)} dense, {steps}{refreshing} refreshing and"
        f" {sparse} sparse steps; a sparse step computes {100 * density:.1f} % of the pairs of tokens, all steps"
        f" {100 * share:.0f} % of the operations of dense sampling; cache: {kept}"
    )


def steps_by_kind(
    model: PlannedModel,
    weights: Weights,
    size: Size,
    latents: tuple[int, int, int],
    plan: SamplingPlan,
    devices: Sequence[Device],
) -> dict[str, dict[str, Any]]:
    """For each kind: the number of steps; density, operations and bytes of one step; and its floor in seconds on each device.

    The floor is the larger of two times. One is all matrix products at peak rate: 8-bit linear layers at the int8 peak, attention
    at the bfloat16 peak. The other is memory traffic at full bandwidth: resident weights and cache read once, the activations of
    all blocks written and read once. Lists depend on the device: of several, the one that computes most gives density, operations
    and bytes. An adaptive step counts as the refresh that it may be.

    Args:
        model: the model with its recipe.
        weights: bytes of the transformer's weights.
        size: size of the video.
        latents: frames, height and width of the latents.
        plan: the sampling plan.
        devices: the devices to estimate for.
    """
    flops, prompts = StepFlops.count(model.dit, size), 2 if plan.uses_negative else 1
    lists = {
        device.name: lists_on(device.peaks, model.dit, plan, latents, size.text_tokens)
        for device in devices
    }
    most = max(lists.values(), default=(1.0, 0))
    moved = 2 * model.dit.num_blocks * activation_bytes(model.dit, size)
    integers = model.recipe.blocks.activations != UNQUANTIZED
    rows = {}
    for kind in dict.fromkeys(plan.kinds):

        def share(density: float, kind: str = kind) -> float:
            return density if kind == SPARSE else 1.0

        def memory(cached: int, kind: str = kind) -> int:
            return prompts * (weights.resident + moved) + (0 if kind == DENSE else cached)

        density, cached = most
        row: dict[str, Any] = {
            "steps": plan.kinds.count(kind),
            "executed_density": round(share(density), 4),
            "flops": prompts * flops.total(share(density)),
            "bytes": memory(cached),
            "cache_bytes": cached,
        }
        row["floor_seconds"] = {}
        for device in devices:
            peaks, (density, cached) = device.peaks, lists[device.name]
            linears = flops.linears / (
                peaks.int8_ops if integers and peaks.int8_ops else peaks.bfloat16_flops
            )
            others = (flops.attention_at(share(density)) + flops.rest) / peaks.bfloat16_flops
            # Several chips share tokens and cache; each reads all weights.
            own = prompts * weights.resident
            own += (memory(cached) - prompts * weights.resident) / device.chips
            products = prompts * (linears + others) / device.chips
            floor = max(products, own / peaks.bandwidth)
            row["floor_seconds"][device.name] = round(floor, 3)
        rows[kind] = row
    return rows


@lru_cache(maxsize=32)
def lists_on(
    target: Target, config: DiTConfig, plan: SamplingPlan, latents: tuple[int, int, int], text: int
) -> tuple[float, int]:
    """Executed density of a sparse step, and bytes of the lists and the cache, with the lists that a device gets.

    Args:
        target: the device.
        config: sizes of the transformer.
        plan: the sampling plan.
        latents: frames, height and width of the latents.
        text: tokens of the prompt, padding included.
    """
    if plan.sparse is None:
        return 1.0, 0
    shape = (1, 0, *latents)
    with targets.assumed(target):
        pattern = pattern_for(plan.sparse, config, shape, text)
        return executed_density(pattern), cache_bytes(config, plan, shape, text)
