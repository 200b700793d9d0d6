"""Adaptive steps: whether a step is a refresh is decided on the device, by the drift of the step before."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qsjax.residual import Gains
from qsjax.sample.state import Adaptive, Cache, Memory, Slot
from qsjax.settings import ADAPTIVE, REFRESH, SPARSE, SamplingPlan, SparsePlan


class Limits(NamedTuple):
    """What decides an adaptive step, scalars; with a leading axis, those of all steps.

    Attributes:
        clock: place of the step on the clock of `Residual`, float32: its number or its noise level.
        drift: drift of the step before above which this one is a refresh, float32.
        least, most: fewest and most steps from refresh to refresh, int32.
    """

    clock: Array
    drift: Array
    least: Array
    most: Array


def limits(plan: SparsePlan, sigma: Float[np.ndarray, " steps_and_one"]) -> Limits:
    """The limits of all steps, with steps as the leading axis.

    Args:
        plan: the plan of sparse attention; an interval of 0 sets no upper limit.
        sigma: noise levels, float32 [steps + 1].
    """
    steps = len(sigma) - 1
    clock = np.arange(steps) if plan.residual.clock == "steps" else sigma[:-1]
    make: Any = Limits  # NumPy's arrays stand for JAX's, as in `schedule`
    return make(
        clock=np.asarray(clock, np.float32),
        drift=np.full(steps, plan.drift, np.float32),
        least=np.full(steps, plan.least_interval, np.int32),
        most=np.full(steps, plan.interval or steps, np.int32),
    )


def nothing_decided(steps: int) -> Adaptive:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.float32)
    return Adaptive(
        count=jnp.zeros((), jnp.int32),
        last_step=jnp.zeros((), jnp.int32),
        last=zero,
        previous=zero,
        refreshed=jnp.zeros(steps, jnp.bool_),
        drift=jnp.zeros(steps, jnp.float32),
    )


def is_due(limits: Limits, index: Int[Array, ""], cache: Cache) -> Bool[Array, ""]:
    """Whether this step is a refresh: the step before drifted too far, or the last refresh is too long ago. Both prompts are
    refreshed together."""
    due = jnp.zeros((), jnp.bool_)
    for memory in cache:
        if (state := memory.adaptive) is not None:
            since = index - state.last_step
            far = state.drift[index - 1] > limits.drift
            due = due | ((since >= limits.least) & (far | (since >= limits.most)))
    return due


def present_gains(limits: Limits, state: Adaptive) -> Gains:
    """The gains of a step (`qsjax.sample.gains.gains`) where only the device knows when the last two refreshes were."""
    known = state.count > 1
    between = jnp.where(known, state.last - state.previous, 1.0)
    reach = jnp.where(known, (limits.clock - state.last) / between, 0.0)
    return Gains(reach=reach, later=(state.count > 0).astype(jnp.float32))


def decided(kind: str, limits: Limits, index: Int[Array, ""], memory: Memory) -> Memory:
    """The memory of a prompt after a step that was a refresh or sparse."""
    state = memory.adaptive
    if state is None:
        return memory
    if kind == REFRESH:
        state = state._replace(
            count=state.count + 1,
            last_step=index,
            last=limits.clock,
            previous=state.last,
            refreshed=state.refreshed.at[index].set(True),
        )
    else:
        state = state._replace(drift=state.drift.at[index].set(_drift(memory.slot)))
    return memory._replace(adaptive=state)


def executed_kinds(plan: SamplingPlan, cache: Cache | None) -> tuple[str, ...]:
    """The kind of every step of a run, adaptive ones as they were decided.

    Args:
        plan: the sampling plan.
        cache: the cache after the last step; None where the plan needs none.
    """
    state = None if cache is None else cache[0].adaptive
    if state is None:
        return plan.kinds
    refreshed = np.asarray(state.refreshed)
    return tuple(
        kind if kind != ADAPTIVE else REFRESH if refreshed[step] else SPARSE
        for step, kind in enumerate(plan.kinds)
    )


def _drift(slot: Slot) -> Float[Array, ""]:
    """The mean over the layers that are not dense, of the sample that drifts most."""
    assert slot.drift is not None  # `empty_cache` makes it for such a plan
    sparse = jnp.ones(len(slot.drift)) if slot.dense is None else (~slot.dense).astype(jnp.float32)
    return ((sparse @ slot.drift) / jnp.maximum(sparse.sum(), 1)).max()
