"""The cost of one step of each kind: executed density, operations, bytes, and a lower bound of its time on each device."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

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
from qsjax.settings import DENSE, REFRESH, SPARSE
from qsjax.sparse import Pattern


def executed_density(pattern: Pattern) -> float:
    """Share of the pairs of blocks that a sparse step computes: those in the video's lists, and all pairs with text queries.

    Lists that are chosen while sampling count with their full length, which is exact for topk and an upper bound for topp.
    """
    video, text = pattern.layouts[0].blocks, pattern.text_blocks
    choice = pattern.empty(1, 1)
    if choice.indices is None:
        listed = int(jnp.sum(pattern.lists(choice).counts))
    else:
        listed = video * choice.indices.shape[-1]
    return (listed + text * (video + text)) / (video + text) ** 2


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
    dense = kinds.count(DENSE) + kinds.count(REFRESH)
    share = (dense * flops.total() + kinds.count(SPARSE) * flops.total(density)) / (
        len(kinds) * flops.total()
    )
    cached = cache_bytes(config, plan, latents, text)
    residual = plan.sparse.residual
    kept = (
        f"{residual.policy}, {residual.store}, {cached / 1e6:,.1f} MB"
        if residual.rule.order
        else "none"
    )
    return (
        f"{plan.sparse.sparsity.mask} attention: {kinds.count(DENSE)} dense, {kinds.count(REFRESH)} refreshing and"
        f" {kinds.count(SPARSE)} sparse steps; a sparse step computes {100 * density:.1f} % of the pairs of tokens, all steps"
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
    all blocks written and read once.

    Args:
        model: the model with its recipe.
        weights: bytes of the transformer's weights.
        size: size of the video.
        latents: frames, height and width of the latents.
        plan: the sampling plan.
        devices: the devices to estimate for.
    """
    flops, prompts = StepFlops.count(model.dit, size), 2 if plan.uses_negative else 1
    density, cached = 1.0, 0
    if plan.sparse is not None:
        pattern = pattern_for(plan.sparse, model.dit, (1, 0, *latents), size.text_tokens)
        density = executed_density(pattern)
        cached = cache_bytes(model.dit, plan, (1, 0, *latents), size.text_tokens)
    moved = 2 * model.dit.num_blocks * activation_bytes(model.dit, size)
    integers = model.recipe.blocks.activations != UNQUANTIZED
    rows = {}
    for kind in dict.fromkeys(plan.kinds):
        share = density if kind == SPARSE else 1.0
        memory = prompts * (weights.resident + moved) + (0 if kind == "dense" else cached)
        row: dict[str, Any] = {
            "steps": plan.kinds.count(kind),
            "executed_density": round(share, 4),
            "flops": prompts * flops.total(share),
            "bytes": memory,
            "cache_bytes": cached,
        }
        row["floor_seconds"] = {}
        for device in devices:
            peaks = device.peaks
            linears = flops.linears / (
                peaks.int8_ops if integers and peaks.int8_ops else peaks.bfloat16_flops
            )
            others = (flops.attention_at(share) + flops.rest) / peaks.bfloat16_flops
            # Several chips share tokens and cache; each reads all weights.
            own = prompts * weights.resident + (memory - prompts * weights.resident) / device.chips
            products = prompts * (linears + others) / device.chips
            floor = max(products, own / peaks.bandwidth)
            row["floor_seconds"][device.name] = round(floor, 3)
        rows[kind] = row
    return rows
