"""Refreshes placed by a table or by the measured drift of attention."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample.sampled_models import CONFIG, SHAPE, prompt, random_dit, sampled, walk
from tolerances import FLOAT32_EPILOGUE, FLOAT32_NETWORK

from qsjax.errors import InputError
from qsjax.residual import Residual
from qsjax.sample import (
    SamplingPlan,
    Skip,
    SparsePlan,
    executed_kinds,
    initial_noise,
    make_sampler,
    sigmas,
)
from qsjax.sample.drift import attention_drift
from qsjax.sample.gains import gains
from qsjax.sparse import Sparsity

HALF = Sparsity(mask="svg", density=0.4, block=4, profiled_rows=12)
SPARSE = SparsePlan(sparsity=HALF, residual=Residual(store="float32", rank=0), interval=3)
PLAN = SamplingPlan(steps=6, shift=3.0, sparse=SPARSE)  # as many as in test_sparse_sampling.py


@pytest.fixture(scope="module")
def dit():
    return random_dit()


def with_sparse(**changes):
    return replace(PLAN, sparse=replace(SPARSE, **changes))


def letters(kinds):
    return "".join(kind[0] for kind in kinds)


def walked(dit, plan):
    """Latents after the last step, executed kinds and the drift of every step."""
    *_, (latents, cache) = walk(dit, plan)
    adaptive = cache[0].adaptive
    drift = None if adaptive is None else np.asarray(adaptive.drift)
    return latents, letters(executed_kinds(plan, cache)), drift


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"refresh_at": (0.3, 0.5)}, "rssrsrssss"),
        ({"refresh_at": (0.0, 0.5), "dense_steps": 3}, "rdrssrssss"),
        ({"refresh_at": (0.5,), "dense_steps": 3, "interval": 1}, "ddrssrssss"),
        ({"drift": 0.1, "dense_steps": 3}, "ddraaaaaaa"),
    ],
)
def test_the_kinds_of_all_steps(changes, expected):
    assert letters(replace(SPARSE, **changes).kinds(10)) == expected


def test_places_are_shares_of_the_run():
    plan = replace(SPARSE, refresh_at=(0.1, 0.34))
    assert [step for step, kind in enumerate(plan.kinds(50)) if kind == "refresh"] == [0, 5, 17]
    assert [step for step, kind in enumerate(plan.kinds(20)) if kind == "refresh"] == [0, 2, 7]


def test_gains_of_a_table_extrapolate_from_its_refreshes():
    plan = replace(SPARSE, refresh_at=(0.25, 0.75))  # r s r s s s r s
    found = gains(plan, sigmas(8, 3.0))
    np.testing.assert_array_equal(found.later, [0, 0, 1, 0, 0, 0, 1, 0])
    np.testing.assert_allclose(found.reach, [0, 0, 0, 1 / 2, 2 / 2, 3 / 2, 0, 1 / 4])


@pytest.mark.parametrize("padded", [0, 3])
def test_drift_is_the_relative_error_of_the_rows(padded):
    """Against softmax written out for one row at a time; padded keys count nowhere."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, 9, 3, 4)).astype(np.float32) for _ in range(3))
    valid = np.arange(9) < 9 - padded
    full = np.zeros_like(q)
    for b, row, h in np.ndindex(2, 9, 3):
        weights = np.exp(k[b, valid, h] @ q[b, row, h] / 2)
        full[b, row, h] = weights @ v[b, valid, h] / weights.sum()
    kv_valid, rows = jnp.broadcast_to(valid, (2, 9)), np.array([1, 4, 6])

    def drift(out):
        return attention_drift(*map(jnp.asarray, (q, k, v)), kv_valid, jnp.asarray(out), rows)

    np.testing.assert_allclose(drift(full), 0, atol=FLOAT32_EPILOGUE)
    elsewhere = full.copy()
    elsewhere[:, [0, 2, 3, 5, 7, 8]] += 1
    np.testing.assert_allclose(drift(elsewhere), 0, atol=FLOAT32_EPILOGUE)
    # A tenth more in the second sample.
    np.testing.assert_allclose(
        drift(full * np.array([1, 1.1], np.float32)[:, None, None, None]),
        [0, 0.1],
        atol=FLOAT32_EPILOGUE,
    )


@pytest.mark.parametrize("clock", ["steps", "sigma"])
@pytest.mark.parametrize(("drift", "kinds"), [(1e9, "rssrss"), (1e-9, "rsrsrs")])
def test_bounds_give_the_schedules_of_these_intervals(dit, clock, drift, kinds):
    """Nothing drifts too far: every third step is a refresh. Everything does: every second one is."""
    residual = replace(SPARSE.residual, clock=clock)
    found, executed, drifts = walked(dit, with_sparse(drift=drift, residual=residual))
    assert executed == kinds
    interval = 3 if drift > 1 else 2
    expected = sampled(dit, with_sparse(interval=interval, residual=residual))
    np.testing.assert_allclose(found, expected, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)
    assert ((drifts > 0) == np.array([kind == "s" for kind in kinds])).all()


def test_the_step_after_the_one_that_drifts_too_far_is_a_refresh(dit):
    never = with_sparse(drift=1e9, interval=0, least_interval=1)
    _, executed, drifts = walked(dit, never)
    assert executed == "r" + 5 * "s"
    # The first drift above all before it, from the second sparse step on.
    step = next(n for n in range(2, 5) if drifts[n] > drifts[:n].max())
    between = float((drifts[step] + drifts[:step].max()) / 2)
    _, executed, again = walked(dit, with_sparse(drift=between, interval=0, least_interval=1))
    assert executed[: step + 2] == "r" + step * "s" + "r"
    np.testing.assert_allclose(again[: step + 1], drifts[: step + 1], rtol=1e-4)


@pytest.mark.whole
def test_both_prompts_are_refreshed_together_and_dense_layers_do_not_drift(dit):
    band = replace(HALF, mask="band")
    plan = replace(with_sparse(drift=1e-9, dense_layers=(1,), sparsity=band), steps=4, true_cfg=2.0)
    *_, (_, (cond, uncond)) = walk(dit, plan)
    np.testing.assert_array_equal(cond.adaptive.refreshed, [True, False, True, False])
    np.testing.assert_array_equal(uncond.adaptive.refreshed, cond.adaptive.refreshed)
    assert (cond.slot.drift[1] < FLOAT32_NETWORK).all()
    np.testing.assert_allclose(cond.adaptive.drift[3], cond.slot.drift[0].max(), rtol=1e-3)


@pytest.mark.whole
def test_all_steps_at_once_decide_alike(dit):
    plan = with_sparse(drift=1e-9, dense_steps=2)
    sampler = jax.jit(make_sampler(CONFIG, plan))
    found = sampler(dit, initial_noise(7, SHAPE), prompt(1))
    expected = sampled(dit, plan)
    np.testing.assert_allclose(found, expected, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)


@pytest.mark.parametrize(
    "changes",
    [
        {"refresh_at": (1.0,)},
        {"refresh_at": (-0.1,)},
        {"drift": -0.1},
        {"drift": float("nan")},
        {"least_interval": 0},
        {"drift": 0.1, "refresh_at": (0.5,)},
        {"drift": 0.1, "interval": 2, "least_interval": 3},
    ],
)
def test_what_is_refused(changes):
    with pytest.raises(InputError):
        replace(SPARSE, **changes)


def test_steps_that_are_left_out_cannot_drift():
    with pytest.raises(InputError, match="do not go together"):
        replace(with_sparse(drift=0.1), skip=Skip(threshold=0.1))
