"""Sampling with sparse attention: plans, gains, and runs that agree with dense ones where they must."""

from dataclasses import replace
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample.sampled_models import CONFIG, counted, prompt, random_dit
from tolerances import FLOAT32_NETWORK

from pallas_kernels import targets
from pallas_kernels.targets import TARGETS
from qsjax.errors import InputError
from qsjax.residual import Residual
from qsjax.sample import (
    Plan,
    SparsePlan,
    empty_cache,
    initial_noise,
    make_sampler,
    prepare,
    schedule,
    sigmas,
    within_budget,
)
from qsjax.sample.cached import cache_bytes
from qsjax.sample.sparse import KINDS, gains
from qsjax.sparse import Sparsity

SHAPE = (2, 4, 3, 8, 8)  # 3 x 4 x 4 tokens
HALF = Sparsity(mask="svg", density=0.4, block=4, profiled_rows=12)
FLOATS = Residual(store="float32", rank=0)
SPARSE = SparsePlan(sparsity=HALF, residual=FLOATS, interval=3, dense_steps=2)


@pytest.fixture(scope="module")
def dit():
    return random_dit()


@pytest.fixture(scope="module")
def dense(dit):
    plan = Plan(steps=8, shift=3.0)
    return jax.jit(make_sampler(CONFIG, plan))(dit, initial_noise(7, SHAPE), prompt(1))


def sampled(dit, sparse, **changes):
    plan = Plan(steps=8, shift=3.0, sparse=sparse, **changes)
    negative = prompt(2, 7) if plan.uses_negative else None
    sampler = jax.jit(make_sampler(CONFIG, plan))
    return sampler(dit, initial_noise(7, SHAPE), prompt(1), negative)


def near(found, expected):
    np.testing.assert_allclose(found, expected, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)


def distance(one, other):
    return float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))


def test_the_kinds_of_all_steps():
    kinds = replace(SPARSE, interval=3, dense_steps=2).kinds(9)
    assert "".join(kind[0] for kind in kinds) == "drssrssrs"
    once = replace(SPARSE, interval=0, dense_steps=1).kinds(4)
    assert "".join(kind[0] for kind in once) == "rsss"
    assert Plan(steps=2).kinds == ("dense", "dense")


@pytest.mark.parametrize("clock", ["steps", "sigma"])
def test_gains_measure_the_way_since_the_refresh(clock):
    plan = replace(SPARSE, interval=3, dense_steps=1, residual=Residual(clock=clock))
    sigma = sigmas(8, 3.0)
    found = gains(plan, sigma)  # r s s r s s r s
    np.testing.assert_array_equal(found.later, [0, 0, 0, 1, 0, 0, 1, 0])
    by_steps = [0, 0, 0, 0, 1 / 3, 2 / 3, 0, 1 / 3]
    by_sigma = [0.0] * 8
    by_sigma[4] = (sigma[4] - sigma[3]) / (sigma[3] - sigma[0])
    by_sigma[5] = (sigma[5] - sigma[3]) / (sigma[3] - sigma[0])
    by_sigma[7] = (sigma[7] - sigma[6]) / (sigma[6] - sigma[3])
    expected = by_steps if clock == "steps" else by_sigma
    np.testing.assert_allclose(found.reach, expected, rtol=1e-6)


@pytest.mark.parametrize("policy", ["none", "second", "recall-following"])
@pytest.mark.parametrize("mask", ["svg", "topk"])
def test_density_one_is_dense_sampling(dit, dense, policy, mask):
    sparsity = replace(HALF, mask=mask, density=1.0)
    residual = Residual(policy=policy, store="int8", rank=2)
    near(sampled(dit, replace(SPARSE, sparsity=sparsity, residual=residual)), dense)


def test_a_refresh_in_every_step_is_dense_sampling(dit, dense):
    near(sampled(dit, replace(SPARSE, interval=1)), dense)


def test_layers_that_are_all_dense_are_dense_sampling(dit, dense):
    near(sampled(dit, replace(SPARSE, dense_layers=(0, 1))), dense)


def test_masks_policies_and_dense_layers_have_an_effect(dit, dense):
    """Which is better is no question to a random model, whose velocities have forgotten the last step."""
    plans = {
        "none": replace(SPARSE, residual=replace(FLOATS, policy="none")),
        "first": replace(SPARSE, residual=replace(FLOATS, policy="first")),
        "layer": replace(SPARSE, residual=replace(FLOATS, policy="first"), dense_layers=(0,)),
    }
    made = [dense, *(sampled(dit, plan) for plan in plans.values())]
    for one, other in combinations(made, 2):
        assert 1e-3 < distance(one, other) < 0.1


def test_all_steps_at_once_equal_step_by_step(dit):
    """With true guidance, where each prompt has a cache of its own, of its own length of text; without it, below."""
    plan, negative = Plan(steps=8, shift=3.0, true_cfg=3.0, sparse=SPARSE), prompt(2, 7)
    conditions = jax.jit(partial(prepare, plan))(dit, prompt(1), negative)
    traces = []
    steps = {kind: counted(plan, kind, traces) for kind in KINDS}
    x, cache, numbers = (
        initial_noise(7, SHAPE),
        empty_cache(plan, dit, SHAPE, conditions),
        schedule(plan),
    )
    for index, kind in enumerate(plan.kinds):
        now = jax.tree.map(lambda leaf, index=index: leaf[index], numbers)
        x, cache = steps[kind](dit, (x, cache), now, conditions)
    near(sampled(dit, SPARSE, true_cfg=plan.true_cfg), x)
    assert sorted(traces) == sorted(KINDS)


def test_a_cache_on_the_host_makes_the_same_video_and_stays_there(dit):
    """Fetched a layer ahead, written back at refreshes, also where a layer is dense."""
    residual = Residual(store="int8", rank=2)
    sparse = replace(SPARSE, residual=residual, dense_layers=(1,))
    hosted = replace(sparse, residual=replace(residual, place="host"))
    plan = Plan(steps=8, shift=3.0, sparse=hosted)
    conditions, numbers = jax.jit(partial(prepare, plan))(dit, prompt(1)), schedule(plan)
    cache, x, traces = empty_cache(plan, dit, SHAPE, conditions), initial_noise(7, SHAPE), []
    steps = {kind: counted(plan, kind, traces) for kind in KINDS}
    for index, kind in enumerate(plan.kinds):
        now = jax.tree.map(lambda leaf, index=index: leaf[index], numbers)
        x, cache = steps[kind](dit, (x, cache), now, conditions)
        layer = cache[0].slot.layer
        for leaf in jax.tree.leaves((layer.cached, layer.change, layer.lse)):
            assert leaf.sharding.memory_kind == "pinned_host"
        assert layer.recall.sharding.memory_kind == "device"
    assert sorted(traces) == sorted(KINDS)
    near(sampled(dit, sparse), x)


def test_a_gpu_is_not_asked_for_its_host(dit):
    plan = Plan(steps=8, sparse=replace(SPARSE, residual=Residual(place="host")))
    with (
        targets.assumed(TARGETS["h100"]),
        pytest.raises(InputError, match="leave it on the device"),
    ):
        empty_cache(plan, dit, SHAPE, prepare(plan, dit, prompt(1)))


def test_a_budget_picks_the_store():
    plan = Plan(steps=8, sparse=replace(SPARSE, residual=Residual(rank=2)))

    def sized(store):
        residual = Residual(rank=2, store=store)
        return cache_bytes(
            CONFIG, replace(plan, sparse=replace(SPARSE, residual=residual)), SHAPE, 5
        )

    def budgeted(budget):
        residual = replace(plan.sparse.residual, budget=budget)
        given = replace(plan, sparse=replace(SPARSE, residual=residual))
        return within_budget(CONFIG, given, SHAPE, 5).sparse.residual

    assert sized("float32") > sized("bfloat16") > sized("int8") > sized("int4")
    for store in ("float32", "bfloat16", "int8", "int4"):
        assert budgeted(sized(store)) == Residual(rank=2, store=store)
    assert budgeted(sized("int8") - 1).store == "int4"
    with pytest.raises(InputError, match="in 4 bits this video's takes"):
        budgeted(sized("int4") - 1)
    assert within_budget(CONFIG, plan, SHAPE, 5) is plan


def test_what_is_refused(dit):
    with pytest.raises(InputError, match="layers 0 to 1"):
        sampled(dit, replace(SPARSE, dense_layers=(2,)))
    for change in (
        {"interval": -1},
        {"dense_steps": 0},
        {"dense_layers": (-1,)},
        {"scores": "int4"},
    ):
        with pytest.raises(InputError):
            replace(SPARSE, **change)
