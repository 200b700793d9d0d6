"""The denoising loop: each step hands the next its latents and its cache."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from qsjax.dit import DiT
from qsjax.sample.step import Conditions, Step, schedule
from qsjax.settings import SamplingPlan

Program = Callable[[DiT, Array, Any, Step, Conditions], tuple[Array, Any]]
"""A step of one kind, compiled: (dit, latents, cache, step, conditions) -> (latents, cache)."""


class StepResult(NamedTuple):
    """What a step leaves.

    Attributes:
        index: of the step, from 0.
        kind: "dense", "refresh" or "sparse".
        latents: float32 [B, C, T, H, W]; they stay readable after the next step.
        cache: of the next step, which may overwrite it in place; None where steps share nothing.
    """

    index: int
    kind: str
    latents: Float[Array, "B C T H W"]
    cache: Any


def denoise(
    plan: SamplingPlan,
    programs: Mapping[str, Program],
    dit: DiT,
    latents: Float[Array, "B C T H W"],
    cache: Any,
    conditions: Conditions,
    *,
    numbers: Step | None = None,
) -> Iterator[StepResult]:
    """Run the steps of a plan one by one. A caller that has seen enough stops iterating.

    Args:
        plan: of the run.
        programs: the step of each kind that the plan has.
        dit: the transformer.
        latents: noise.
        cache: of `empty_cache`; None where the plan remembers nothing.
        conditions: of `prepare`.
        numbers: of `schedule`, where they lie elsewhere than on the default device.
    """
    numbers = schedule(plan) if numbers is None else numbers
    for index, kind in enumerate(plan.kinds):
        latents, cache = programs[kind](dit, latents, cache, step_at(numbers, index), conditions)
        yield StepResult(index, kind, latents, cache)


def step_at(numbers: Step, index: int) -> Step:
    """The numbers of one step, out of those of all."""
    return jax.tree.map(lambda leaf: leaf[index], numbers)
