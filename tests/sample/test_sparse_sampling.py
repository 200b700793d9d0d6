"""Sampling with sparse attention: plans, gains, and runs that agree with dense ones where they must."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample.sampled_models import (
    CONFIG,
    SHAPE,
    prompt,
    random_dit,
    sampled,
    step_program,
    walk,
)
from tolerances import FLOAT32_NETWORK

from pallas_kernels import targets
from pallas_kernels.targets import TARGETS
from qsjax.errors import InputError
from qsjax.residual import Residual
from qsjax.sample import (
    SamplingPlan,
    SparsePlan,
    empty_cache,
    initial_noise,
    make_sampler,
    prepare,
    sigmas,
    within_budget,
)
from qsjax.sample.cache_size import cache_bytes
from qsjax.sample.gains import gains
from qsjax.sparse import Sparsity

HALF = Sparsity(mask="svg", density=0.4, block=4, profiled_rows=12)
FLOATS = Residual(store="float32", rank=0)
SPARSE = SparsePlan(sparsity=HALF, residual=FLOATS, interval=3, dense_steps=2)
STEPS = 6  # in all runs, so that they share their programs
DENSE = SamplingPlan(steps=STEPS, shift=3.0)


@pytest.fixture(scope="module")
def dit():
    return random_dit()


@pytest.fixture(scope="module")
def dense(dit):
    return sampled(dit, DENSE)


def near(found, expected):
    np.testing.assert_allclose(found, expected, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)


def distance(one, other):
    return float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))


def test_the_kinds_of_all_steps():
    kinds = replace(SPARSE, interval=3, dense_steps=2).kinds(9)
    assert "".join(kind[0] for kind in kinds) == "drssrssrs"
    once = replace(SPARSE, interval=0, dense_steps=1).kinds(4)
    assert "".join(kind[0] for kind in once) == "rsss"
    assert SamplingPlan(steps=2).kinds == ("dense", "dense")


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


@pytest.mark.parametrize(("mask", "policy"), [("svg", "recall-following"), ("topk", "second")])
def test_density_one_is_dense_sampling(dit, dense, mask, policy):
    """Of all masks and policies together: tests/residual, for one layer."""
    sparsity = replace(HALF, mask=mask, density=1.0)
    residual = Residual(policy=policy, store="int8", rank=2)
    sparse = replace(SPARSE, sparsity=sparsity, residual=residual, dense_steps=1)
    near(sampled(dit, replace(DENSE, sparse=sparse)), dense)


def test_a_refresh_in_every_step_is_dense_sampling(dit, dense):
    near(sampled(dit, replace(DENSE, sparse=replace(SPARSE, interval=1))), dense)


def test_policies_and_dense_layers_do_what_they_say(dit):
    """Where latents hardly move from step to step, what the first order remembers is what the lists leave out."""
    still = SamplingPlan(steps=STEPS, shift=1e5)
    forgets = replace(FLOATS, policy="none")
    plans = {
        "none": replace(SPARSE, residual=forgets),
        "one layer": replace(SPARSE, residual=forgets, dense_layers=(0,)),
        "no layer": replace(SPARSE, residual=forgets, dense_layers=(0, 1)),
        "first": replace(SPARSE, residual=replace(FLOATS, policy="first")),
    }
    expected, error = sampled(dit, still), {}
    for name, sparse in plans.items():
        made = sampled(dit, replace(still, sparse=replace(sparse, interval=0, dense_steps=1)))
        error[name] = distance(made, expected)
    assert error["none"] > 0.05
    assert error["first"] < error["none"] / 100
    # One of two layers forgets; then none of them does.
    assert 0.2 < error["one layer"] / error["none"] < 0.8
    assert error["no layer"] < FLOAT32_NETWORK


def test_all_steps_at_once_equal_step_by_step(dit):
    """Kinds: d d r s r s, each compiled once. With true guidance, where each prompt has a cache of its own: tests/parallel."""
    plan = replace(DENSE, sparse=replace(SPARSE, interval=2, dense_steps=3))
    kinds = ("dense", "refresh", "sparse")
    assert set(kinds) == set(plan.kinds)

    def programs():
        """Of each kind, how many there are: one for each length of run that a test has asked for."""
        return np.array([step_program(plan, kind)._cache_size() for kind in kinds])

    before = programs()
    expected = sampled(dit, plan)
    # Steps differ in data only: at most one more of a kind, of which there are up to three.
    assert (programs() - before <= 1).all()
    assert (programs() >= 1).all()
    sampler = jax.jit(make_sampler(CONFIG, plan))
    near(sampler(dit, initial_noise(7, SHAPE), prompt(1)), expected)


def test_a_cache_on_the_host_makes_the_same_video_and_stays_there(dit):
    """Fetched a layer ahead, written back at refreshes, also where a layer is dense."""
    residual = Residual(store="int8", rank=2)
    sparse = replace(SPARSE, residual=residual, dense_layers=(1,), dense_steps=1)
    hosted = replace(sparse, residual=replace(residual, place="host"))
    for latents, cache in walk(dit, replace(DENSE, sparse=hosted)):
        layer = cache[0].slot.layer
        for leaf in jax.tree.leaves((layer.cached, layer.change, layer.lse)):
            assert leaf.sharding.memory_kind == "pinned_host"
        assert layer.recall.sharding.memory_kind == "device"
        x = latents
    near(sampled(dit, replace(DENSE, sparse=sparse)), x)


def test_a_gpu_is_not_asked_for_its_host(dit):
    plan = SamplingPlan(steps=STEPS, sparse=replace(SPARSE, residual=Residual(place="host")))
    with (
        targets.assumed(TARGETS["h100"]),
        pytest.raises(InputError, match="leave it on the device"),
    ):
        empty_cache(plan, dit, SHAPE, prepare(plan, dit, prompt(1)))


def test_a_budget_picks_the_store():
    plan = SamplingPlan(steps=STEPS, sparse=replace(SPARSE, residual=Residual(rank=2)))

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
        sampled(dit, replace(DENSE, sparse=replace(SPARSE, dense_layers=(2,))))
    for change in (
        {"interval": -1},
        {"dense_steps": 0},
        {"dense_layers": (-1,)},
    ):
        with pytest.raises(InputError):
            replace(SPARSE, **change)
