"""Sampling: the Euler loop against a loop written by hand, guidance, seeds, purity."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from sample.sampled_models import CONFIG, prompt, random_dit
from tolerances import FLOAT32_NETWORK

from qsjax.errors import InputError
from qsjax.sample import (
    DENSE,
    SamplingPlan,
    denoise,
    denoise_step,
    initial_noise,
    make_sampler,
    prepare,
    schedule,
    sigmas,
)
from qsjax.sample.sampler import _run
from qsjax.settings.sparse import KINDS

SHAPE = (2, 4, 2, 4, 4)


@pytest.fixture(scope="module")
def dit():
    return random_dit()


@pytest.mark.parametrize("true_cfg", [1.0, 3.0])
def test_sampler_is_the_euler_loop_written_out(dit, true_cfg):
    plan = SamplingPlan(steps=3, shift=3.0, guidance=4.0, true_cfg=true_cfg)
    text, negative = prompt(1), prompt(2)
    noise = initial_noise(7, SHAPE)
    forward = jax.jit(lambda dit, x, t, p: dit(x, t, *p, jnp.full(2, 4000.0)))
    x, levels = noise, sigmas(3, 3.0)
    for now, then in pairwise(levels):
        t = jnp.full(2, now * np.float32(1000))
        velocity = forward(dit, x, t, text)
        if true_cfg > 1:
            away = forward(dit, x, t, negative)
            velocity = away + true_cfg * (velocity - away)
        x = x + (then - now) * velocity
    sampler = jax.jit(make_sampler(CONFIG, plan))
    found = sampler(dit, noise, text, negative if true_cfg > 1 else None)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, x, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)


def test_all_steps_at_once_equal_step_by_step(dit):
    plan = SamplingPlan(steps=4, shift=7.0)
    text, noise = prompt(1), initial_noise(3, SHAPE)
    whole = jax.jit(make_sampler(CONFIG, plan))(dit, noise, text)
    conditions = jax.jit(partial(prepare, plan))(dit, text)
    programs = {DENSE: jax.jit(partial(denoise_step, plan, DENSE))}
    with compilations() as compiled:
        *_, last = denoise(plan, programs, dit, noise, None, conditions)
    assert compiled["denoise_step"] == 1
    assert (last.index, last.kind, last.cache) == (3, DENSE, None)
    np.testing.assert_allclose(whole, last.latents, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)


@pytest.mark.parametrize("kinds", ["s", "rssr", "drsrsr", "ddrsrs", "drssrssrs"])
def test_every_step_is_run_once_in_turn_and_as_its_kind(kinds):
    """Scans within a scan, whose last round may be cut short: what steps do is left out here."""
    names = [next(name for name in KINDS if name[0] == letter) for letter in kinds]
    numbers = schedule(SamplingPlan(steps=len(kinds)))

    def body(kind):
        def step(carry, current):
            row = jnp.stack([jnp.float32(KINDS.index(kind)), current.timestep])
            return (jnp.roll(carry[0], -1, axis=0).at[-1].set(row), None), None

        return step

    (rows, _), _ = _run(names, body, (jnp.full((len(kinds), 2), -1.0), None), numbers)
    np.testing.assert_array_equal(rows[:, 0], [KINDS.index(name) for name in names])
    np.testing.assert_array_equal(rows[:, 1], numbers.timestep)


def test_noise_is_a_function_of_the_seed_alone():
    np.testing.assert_array_equal(initial_noise(5, SHAPE), initial_noise(5, SHAPE))
    # Sample b of a batch has the noise of seed + b, whatever the batch is.
    np.testing.assert_array_equal(initial_noise(5, SHAPE)[1:], initial_noise(6, (1, *SHAPE[1:])))
    assert abs(np.asarray(initial_noise(0, (1, 16, 8, 16, 16))).std() - 1) < 0.02
    # Threefry is specified to the bit, on every backend and in every release.
    np.testing.assert_allclose(
        initial_noise(0, (1, 1, 1, 1, 2)).ravel(), [1.6226422, 2.0252647], rtol=1e-6
    )


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("seed", [1, 2**31, 2**32 - 1])
def test_small_seeds_are_those_of_jax(seed):
    shape = (3, 2, 5, 7)  # of this test alone, so that both programs are compiled here, as users do
    expected = jax.random.normal(jax.random.key(seed, impl="threefry2x32"), shape)
    np.testing.assert_array_equal(initial_noise(seed, (1, *shape))[0], expected)


def test_all_64_bits_of_a_seed_count():
    seeds = (5, 2**32 + 5, 2**63 + 5, 2**64 - 1)
    made = [np.asarray(initial_noise(seed, (1, 1, 1, 2, 2))).tobytes() for seed in seeds]
    assert len(set(made)) == len(seeds)
    for seed, batch in ((-1, 1), (2**64, 1), (2**64 - 1, 2)):
        with pytest.raises(InputError, match=f"seed {seed}: must be from 0 to"):
            initial_noise(seed, (batch, 1, 1, 2, 2))


def test_guidance_without_a_negative_prompt_is_refused(dit):
    with pytest.raises(InputError, match="needs a negative prompt"):
        prepare(SamplingPlan(steps=1, true_cfg=2.0), dit, prompt(1))


def test_sampler_refuses_a_model_of_another_configuration(dit):
    from dataclasses import replace

    sampler = make_sampler(replace(CONFIG, rope_theta=1.0), SamplingPlan(steps=1))
    with pytest.raises(InputError, match="another configuration"):
        sampler(dit, initial_noise(0, SHAPE), prompt(1))


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"true_cfg": 0.5}, {"guidance": -1.0}, {"shift": 0.0}]
)
def test_impossible_plans_are_refused(values):
    with pytest.raises(InputError):
        SamplingPlan(**values)
