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

STEPS = 6
# A polynomial that says 1 whatever changes, so that it is known which steps are left out. A rule is compiled into the steps, as
# is the length of the run: both are the same in most tests.
TWO_OF_THREE = Skip(threshold=2.5, coefficients=(0.0, 1.0))
EVERY_OTHER = Skip(threshold=1.5, coefficients=(0.0, 1.0))
SPARSE = SparsePlan(
    sparsity=Sparsity(mask="svg", density=0.4, block=4, profiled_rows=12),
    residual=Residual(store="float32", rank=0),
    interval=3,
)  # r s s r s s


@pytest.fixture(scope="module")
def dit():
    return random_dit()


def near(found, expected):
    np.testing.assert_allclose(found, expected, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)


def run(dit, plan, numbers=None):
    """Latents after every step, and the count of steps left out until then."""
    steps = list(walk(dit, plan, numbers=numbers))
    counts = [0 if plan.skip is None else int(cache[0].skipped.count) for _, cache in steps]
    return [latents for latents, _ in steps], counts


def test_first_and_last_steps_and_refreshes_are_always_computed():
    found = may_skip(("dense", "dense", "refresh", "sparse", "refresh", "sparse"), ("refresh",))
    np.testing.assert_array_equal(found, [False, True, False, True, False, False])
    assert not may_skip(("dense",), ()).any()


def test_a_threshold_that_nothing_is_below_changes_nothing(dit):
    plan = SamplingPlan(steps=STEPS, shift=3.0, true_cfg=2.0)
    expected, _ = run(dit, plan)
    found, counts = run(dit, replace(plan, skip=Skip(threshold=1e-9)))
    assert counts[-1] == 0
    near(found[-1], expected[-1])


def test_a_step_that_is_computed_is_the_one_without_a_rule(dit):
    """Where none may be left out, refreshes and sparse steps compute what they do without a rule."""
    plan = SamplingPlan(steps=STEPS, shift=3.0, sparse=SPARSE)
    expected, _ = run(dit, plan)
    plan = replace(plan, skip=EVERY_OTHER)
    numbers = schedule(plan)._replace(allowed=jnp.zeros(STEPS, jnp.bool_))
    found, counts = run(dit, plan, numbers)
    assert counts == [0] * STEPS
    near(found[-1], expected[-1])


@pytest.mark.parametrize(
    ("sparse", "skip", "counts"),
    [
        # Step 0 is computed and starts the sum at 0; 1 and 2 make it 1 and 2; 3 would make it 3. The last, which would make
        # it 2, is always computed.
        (None, TWO_OF_THREE, [0, 1, 2, 2, 3, 3]),
        # Step 3, which would make the sum 1, is a refresh and always computed.
        (SPARSE, EVERY_OTHER, [0, 1, 1, 1, 2, 2]),
    ],
)
def test_changes_add_up_through_the_polynomial_until_a_step_is_computed(dit, sparse, skip, counts):
    _, found = run(dit, SamplingPlan(steps=STEPS, shift=3.0, sparse=sparse, skip=skip))
    assert found == counts


def test_what_the_blocks_added_last_is_added_again(dit):
    """The second step of two skips: its velocity is the final layer of its own tokens and the first step's blocks."""
    plan = SamplingPlan(steps=STEPS, shift=3.0, skip=TWO_OF_THREE)
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


def test_the_sampler_leaves_out_the_same_steps(dit):
    """By the change of the tokens themselves: tests/parallel."""
    plan = SamplingPlan(steps=STEPS, shift=3.0, sparse=SPARSE, skip=EVERY_OTHER)
    expected, counts = run(dit, plan)
    assert counts == [0, 1, 1, 1, 2, 2]
    found = jax.jit(make_sampler(CONFIG, plan))(dit, initial_noise(7, SHAPE), prompt(1))
    near(found, expected[-1])


@pytest.mark.parametrize(
    "wrong", [{"threshold": -0.1}, {"threshold": float("nan")}, {"coefficients": (float("inf"),)}]
)
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match="all are finite"):
        Skip(**wrong)
