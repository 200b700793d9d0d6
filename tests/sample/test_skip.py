"""Step skipping: which steps may be left out, when they are, and what takes their place."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample.sampled_models import CONFIG, SHAPE, prompt, random_dit, walk
from tolerances import FLOAT32_NETWORK

from qsjax.errors import InputError
from qsjax.residual import Residual
from qsjax.sample import (
    SamplingPlan,
    Skip,
    SparsePlan,
    initial_noise,
    make_sampler,
    prepare,
    schedule,
)
from qsjax.sample.skip import may_skip
from qsjax.sparse import Sparsity

STEPS = 8
ALWAYS = Skip(threshold=1e9)
SPARSE = SparsePlan(
    sparsity=Sparsity(mask="svg", density=0.4, block=4, profiled_rows=12),
    residual=Residual(store="float32", rank=0),
    interval=3,
)  # r s s r s s r s


@pytest.fixture(scope="module")
def dit():
    return random_dit()


def near(found, expected):
    np.testing.assert_allclose(found, expected, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)


def run(dit, plan):
    """Latents after every step, and the count of steps left out until then."""
    steps = list(walk(dit, plan))
    counts = [0 if plan.skip is None else int(cache[0].skipped.count) for _, cache in steps]
    return [latents for latents, _ in steps], counts


def test_first_and_last_steps_and_refreshes_are_always_computed():
    found = may_skip(("dense", "dense", "refresh", "sparse", "refresh", "sparse"), ("refresh",))
    np.testing.assert_array_equal(found, [False, True, False, True, False, False])
    assert not may_skip(("dense",), ()).any()


@pytest.mark.parametrize(("sparse", "true_cfg"), [(None, 2.0), (SPARSE, 1.0)])
def test_a_threshold_that_nothing_is_below_changes_nothing(dit, sparse, true_cfg):
    plan = SamplingPlan(steps=STEPS, shift=3.0, sparse=sparse, true_cfg=true_cfg)
    expected, _ = run(dit, plan)
    found, counts = run(dit, replace(plan, skip=Skip(threshold=1e-9)))
    assert counts[-1] == 0
    near(found[-1], expected[-1])


@pytest.mark.parametrize(("sparse", "computed"), [(None, [0, 7]), (SPARSE, [0, 3, 6, 7])])
def test_what_may_be_left_out_is_below_a_large_threshold(dit, sparse, computed):
    plan = SamplingPlan(steps=STEPS, shift=3.0, sparse=sparse, skip=ALWAYS)
    _, counts = run(dit, plan)
    assert [n for n, more in enumerate(np.diff([0, *counts])) if not more] == computed


def test_what_the_blocks_added_last_is_added_again(dit):
    """The second step of two skips: its velocity is the final layer of its own tokens and the first step's blocks."""
    plan = SamplingPlan(steps=STEPS, shift=3.0, skip=ALWAYS)
    found, counts = run(dit, plan)
    assert counts[:2] == [0, 1]
    text, numbers = prompt(1), schedule(plan)
    table = prepare(plan, dit, text).modulation
    noise, x, added = initial_noise(7, SHAPE), [], None
    for index in range(2):
        now = jax.tree.map(lambda leaf, index=index: leaf[index], numbers)
        row = jax.tree.map(lambda leaf, index=index: leaf[index], table)
        latents = x[-1] if x else noise
        times = jnp.full(2, now.timestep)
        img, txt, context = dit.embed(latents, times, text.text, text.mask)
        if added is None:
            added = dit.through_blocks(img, txt, context, row)[0] - img
        x.append(latents + now.delta * dit.velocity(img + added, row, latents))
    near(found[0], x[0])
    near(found[1], x[1])


def test_changes_add_up_through_the_polynomial_until_a_step_is_computed(dit):
    """A polynomial that says 1 whatever changes: of a threshold of 2.5, two steps in three are left out."""
    skip = Skip(threshold=2.5, coefficients=(0.0, 1.0))
    _, counts = run(dit, SamplingPlan(steps=STEPS, shift=3.0, skip=skip))
    # Step 0 is computed and starts the sum at 0; 1 and 2 make it 1 and 2; 3 would make it 3. The last is always computed.
    assert counts == [0, 1, 2, 2, 3, 4, 4, 4]


def test_the_sampler_leaves_out_the_same_steps(dit):
    plan = SamplingPlan(steps=6, shift=3.0, sparse=SPARSE, skip=Skip(threshold=1.0))
    expected, counts = run(dit, plan)
    assert 0 < counts[-1] < 3
    found = jax.jit(make_sampler(CONFIG, plan))(dit, initial_noise(7, SHAPE), prompt(1))
    near(found, expected[-1])


@pytest.mark.parametrize(
    "wrong", [{"threshold": -0.1}, {"threshold": float("nan")}, {"coefficients": (float("inf"),)}]
)
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match="all are finite"):
        Skip(**wrong)
