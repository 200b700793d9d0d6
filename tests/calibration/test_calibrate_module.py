"""Calibrating a small random model: training helps the blocks, rotations of two factors stay rotations, programs are few.

With rotations of one factor, which help the whole model more: test_calibrate_checkpoint.py.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calibration.calibration_models import BLOCKS, random_dit, random_samples
from calibration.calibration_models import METHOD as SHORT
from calibration.calibration_models import RECIPE as ONE_FACTOR
from compilations import compilations
from tolerances import FLOAT32_NETWORK

from qsjax.calibration import METHODS, calibrate_module
from qsjax.calibration.programs import Programs
from qsjax.quant import Override, Precision

# After six steps one block of a model this small may be farther than rounding to nearest; not after eighteen.
METHOD = replace(SHORT, epochs=9)
KEPT = Override(pattern=r"double_blocks\.txt\.(proj|qkv)", precision=Precision(weights=16))
RECIPE = replace(ONE_FACTOR, overrides=(KEPT,), rotation="kronecker", rotation_size=12)


@pytest.fixture(scope="module")
def dit():
    return random_dit()


@pytest.fixture(scope="module")
def samples():
    return random_samples()


@jax.jit
def velocity(dit, samples):
    return dit(*samples)


def distance(one, other, samples):
    exact, found = velocity(one, samples), velocity(other, samples)
    return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))


PROGRAMS = ("step", "observe", "compare_layers")


@pytest.fixture(scope="module")
def compiled():
    """How often each program was compiled for `made`."""
    return {}


@pytest.fixture(scope="module")
def made(dit, samples, compiled):
    for name in PROGRAMS:
        getattr(Programs, name).clear_cache()
    with compilations() as counts:
        found = calibrate_module(dit, samples, RECIPE, METHOD)
    compiled |= {name: counts[name] for name in PROGRAMS}
    return found


def test_sixteen_bits_change_nothing(dit, samples):
    sixteen = Precision(weights=16)
    recipe = replace(ONE_FACTOR, blocks=sixteen, modulation=sixteen, refiner=sixteen)
    same, _ = calibrate_module(dit, samples, recipe, METHODS["vidit"])
    np.testing.assert_array_equal(velocity(same, samples), velocity(dit, samples))


def test_training_brings_blocks_nearer_than_rounding_to_nearest(made, dit, samples):
    quantized, reports = made
    assert [one["block"] for one in reports] == BLOCKS
    for one in reports:
        assert len(one["loss"]) == METHOD.epochs
    # How sums are rounded decides much in a model this small: one block may end a few percent farther.
    ratios = np.array([one["end"]["output"] / one["round_to_nearest"]["output"] for one in reports])
    assert np.log(ratios).mean() < np.log(0.9), ratios
    assert ratios.max() < 1.2, ratios
    plain, _ = calibrate_module(dit, samples, RECIPE, METHODS["rtn"])
    assert 0.05 < distance(dit, quantized, samples) < 0.2
    assert 0.05 < distance(dit, plain, samples) < 0.2


def test_weights_are_packed_and_rotations_orthogonal(made):
    quantized, _ = made
    qkv, linear1 = quantized.double_blocks.img.qkv, quantized.single_blocks.linear1
    assert qkv.packed.dtype == jnp.int8
    assert qkv.packed.shape == (2, 24, 144)
    for factors, size in ((linear1.rotation[...], 12), (linear1.mix[...], 4)):
        assert factors.shape == (2, size, size)
        for rotation in factors:
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(size), atol=FLOAT32_NETWORK)
            assert np.abs(np.abs(rotation) - size**-0.5).max() > 1e-3  # no longer the Hadamard


def test_a_layer_that_an_override_keeps_is_the_float_one(made, dit):
    quantized, _ = made
    np.testing.assert_array_equal(
        quantized.double_blocks.txt.proj.kernel, dit.double_blocks.txt.proj.kernel
    )


def test_the_seed_decides(made, dit, samples):
    again, other = (
        jax.tree.leaves(calibrate_module(dit, samples, RECIPE, METHOD, seed=seed)[0])
        for seed in (0, 1)
    )
    first = jax.tree.leaves(made[0])
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(first, other, strict=True))


def test_one_program_of_a_sort_for_all_blocks_of_a_kind(made, compiled):
    """Four blocks, two kinds: two compiled steps, and two of whatever else there is."""
    assert compiled == dict.fromkeys(PROGRAMS, 2)
