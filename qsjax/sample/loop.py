"""The denoising loop: each step passes its latents and its cache to the next."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qsjax.dit import DiT
from qsjax.sample.state import Cache
from qsjax.sample.step import Conditions, Step, schedule
from qsjax.settings import SamplingPlan

Program = Callable[[DiT, Array, Cache | None, Step, Conditions], tuple[Array, Cache | None]]
"""A step of one kind, compiled: (dit, latents, cache, step, conditions) -> (latents, cache)."""


class StepResult(NamedTuple):
    """The result of one step.

    Attributes:
        index: index of the step, from 0.
        kind: "dense", "refresh", "sparse" or "adaptive", which the device decides to be one of the two before.
        latents: float32 [B, C, T, H, W]; they stay readable after the next step.
        cache: the next step's input, which that step may overwrite in place; None where the plan needs no cache.
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
    cache: Cache | None,
    conditions: Conditions,
    *,
    numbers: Step | None = None,
) -> Iterator[StepResult]:
    """Run the steps of a plan one by one; stop iterating to end early.

    Args:
        plan: the sampling plan.
        programs: the compiled step of each kind that the plan has.
        dit: the transformer.
        latents: initial noise.
        cache: the result of `empty_cache`; None where the plan needs no cache.
        conditions: the result of `prepare`.
        numbers: the result of `schedule`, if it is placed elsewhere than on the default device; None computes it.
    """
    numbers = schedule(plan) if numbers is None else numbers
    for index, kind in enumerate(plan.kinds):
        latents, cache = programs[kind](dit, latents, cache, step_at(numbers, index), conditions)
        yield StepResult(index, kind, latents, cache)


def step_at(numbers: Step, index: int | Int[Array, ""]) -> Step:
    """Select the numbers of one step from those of all steps; an index that only the device knows selects there."""
    if not isinstance(index, int):
        numbers = jax.tree.map(jnp.asarray, numbers)
    return jax.tree.map(lambda leaf: leaf[index], numbers)
