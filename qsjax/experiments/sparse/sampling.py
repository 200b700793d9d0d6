"""Sampling a reference's clips with sparse attention, with as few compiled programs as the plans allow."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.dit import DiT
from qsjax.evaluate.reference import Batch, dense_programs
from qsjax.progress import Progress
from qsjax.sample import Conditions, SamplingPlan, SparsePlan, denoise, denoise_step, empty_cache
from qsjax.sample.loop import Program
from qsjax.sample.state import Cache
from qsjax.settings import KINDS

EmptyCache = Callable[[DiT, Array, Conditions], Cache]
"""`empty_cache` of a plan, compiled: (dit, latents, conditions) -> the cache before the first step."""


def sampled(
    plan: SamplingPlan, dit: DiT, batch: Batch, bar: Progress
) -> tuple[Float[np.ndarray, "B C T H W"], Cache | None]:
    """The last latents of a batch from the reference's noise, and the cache after the last step."""
    make_conditions, _ = dense_programs(plan.dense)
    make_cache, steps = cached_programs(_static(plan))
    conditions = make_conditions(dit, batch.prompt, batch.negative)
    x = jnp.asarray(batch.trajectory[0])
    cache = make_cache(dit, x, conditions) if plan.remembers else None
    for result in denoise(plan, steps, dit, x, cache, conditions):
        x, cache = result.latents, result.cache
        bar.advance()
    return np.asarray(x), cache


@lru_cache(maxsize=2)
def cached_programs(plan: SamplingPlan) -> tuple[EmptyCache, Mapping[str, Program]]:
    """The jitted cache and its steps; plans that differ in numbers only have the same.

    Few are kept: each holds a thousand mappings of memory on a CPU, and a process may have 65,530.
    """
    cache = jax.jit(lambda dit, x, conditions: empty_cache(plan, dit, x.shape, conditions))
    return cache, {kind: jax.jit(partial(denoise_step, plan, kind)) for kind in KINDS}


def without_numbers(sparse: SparsePlan) -> SparsePlan:
    """The plan without what reaches its steps as numbers: plans that are then equal share their programs."""
    drift = 1.0 if sparse.drift else 0.0
    return replace(sparse, interval=0, refresh_at=(), drift=drift, least_interval=1, dense_steps=1)


def _static(plan: SamplingPlan) -> SamplingPlan:
    sparse = plan.sparse and without_numbers(plan.sparse)
    # What adaptive steps decide is kept for every step; other programs do not depend on how many there are.
    steps = plan.steps if sparse and sparse.drift else 1
    return SamplingPlan(steps=steps, true_cfg=plan.true_cfg, sparse=sparse, skip=plan.skip)
