"""What one step of each kind costs: executed density, operations, bytes, and the time below which no device can go."""

from typing import Any

import jax
import jax.numpy as jnp

from qsjax.dit import DiTConfig
from qsjax.plan.devices import Device
from qsjax.plan.flops import StepFlops
from qsjax.plan.models import PlannedModel
from qsjax.plan.sampling import activation_bytes
from qsjax.plan.size import Size
from qsjax.plan.weights import Weights
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.residual import bytes_of, empty_state
from qsjax.sample import Plan
from qsjax.sample.cached import pattern_for
from qsjax.sample.sparse import SPARSE, SparsePlan
from qsjax.sparse import Pattern


def executed_density(pattern: Pattern) -> float:
    """Blocks that a sparse step computes, over all blocks: the video's lists, and the text's rows, which see everything.

    Lists that a pattern decides while sampling count with the room they have: exact for topk, the most for topp.
    """
    video, text = pattern.layouts[0].blocks, pattern.text_blocks
    choice = pattern.empty(1, 1)
    if choice.counts is None:
        listed = int(jnp.sum(pattern.lists(choice).counts))
    else:
        listed = video * choice.indices.shape[-1]
    return (listed + text * (video + text)) / (video + text) ** 2


def cache_bytes(config: DiTConfig, plan: SparsePlan, pattern: Pattern, prompts: int) -> int:
    """Of the lists and the residual cache of all layers, bfloat16 factors."""
    state = jax.eval_shape(
        lambda: empty_state(
            plan.residual, pattern, 1, config.num_heads, config.head_dim, jnp.bfloat16
        )
    )
    return prompts * config.num_blocks * bytes_of(state)


def steps_by_kind(
    model: PlannedModel,
    weights: Weights,
    size: Size,
    latents: tuple[int, int, int],
    plan: Plan,
    devices: list[Device],
) -> dict[str, dict[str, Any]]:
    """For each kind: how many steps, density, operations and bytes of one, and its floor on each device.

    The floor is the larger of two times: products at the peak of their unit (8-bit linears at the integers', attention
    in bfloat16), and resident weights, cache and the activations of all blocks once through the memory, in and out.

    Args:
        model: with its recipe.
        weights: of the transformer.
        size: of the video.
        latents: frames, height, width.
        plan: of the run.
        devices: to estimate for.
    """
    flops, prompts = StepFlops.count(model.dit, size), 2 if plan.uses_negative else 1
    density, cached = 1.0, 0
    if plan.sparse is not None:
        pattern = pattern_for(plan.sparse, model.dit, (1, 0, *latents), size.text_tokens)
        density = executed_density(pattern)
        cached = cache_bytes(model.dit, plan.sparse, pattern, prompts)
    moved = 2 * model.dit.num_blocks * activation_bytes(model.dit, size)
    integers = model.recipe.blocks.activations != UNQUANTIZED
    found = {}
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
            floor = max(prompts * (linears + others), memory / peaks.bandwidth)
            row["floor_seconds"][device.name] = round(floor, 3)
        found[kind] = row
    return found
