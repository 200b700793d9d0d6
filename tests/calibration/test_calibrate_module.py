"""Calibrating a small random model: packed and fake-quantized blocks agree, training helps, programs are few."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calibration.calibration_models import BLOCKS, METHOD, RECIPE, random_dit, random_samples
from compilations import compilations
from tolerances import FLOAT32_NETWORK

from qsjax.calibration import METHODS, calibrate_module
from qsjax.calibration.programs import Programs
from qsjax.quant import Override, Precision


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
    recipe = replace(RECIPE, blocks=sixteen, modulation=sixteen, refiner=sixteen)
    same, _ = calibrate_module(dit, samples, recipe, METHODS["vidit"])
    np.testing.assert_array_equal(velocity(same, samples), velocity(dit, samples))


def test_training_beats_round_to_nearest(made, dit, samples):
    quantized, reports = made
    assert [one["block"] for one in reports] == BLOCKS
    for one in reports:
        assert len(one["loss"]) == METHOD.epochs
        assert one["end"]["output"] < one["round_to_nearest"]["output"]
    plain, _ = calibrate_module(dit, samples, RECIPE, METHODS["rtn"])
    assert distance(dit, quantized, samples) < distance(dit, plain, samples) < 0.5


def test_weights_are_packed_and_rotations_orthogonal(made):
    quantized, _ = made
    qkv, linear1 = quantized.double_blocks.img.qkv, quantized.single_blocks.linear1
    assert qkv.packed.dtype == jnp.int8
    assert qkv.packed.shape == (2, 24, 144)
    for rotation in linear1.rotation[...]:
        np.testing.assert_allclose(
            rotation @ rotation.T, np.eye(len(rotation)), atol=FLOAT32_NETWORK
        )
        assert np.abs(np.abs(rotation) - 8**-0.5).max() > 1e-3  # no longer the Hadamard


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


def test_quantized_inputs_overrides_and_two_factors(dit, samples):
    keep = Override(pattern=r"double_blocks\.txt\.(proj|qkv)", precision=Precision(weights=16))
    recipe = replace(RECIPE, overrides=(keep,), rotation="kronecker", rotation_size=12)
    method = replace(METHODS["ptq"], epochs=2, inputs="mixed")
    quantized, _ = calibrate_module(dit, samples, recipe, method)
    assert quantized.single_blocks.linear1.mix.shape == (2, 4, 4)
    np.testing.assert_array_equal(
        quantized.double_blocks.txt.proj.kernel, dit.double_blocks.txt.proj.kernel
    )
    assert distance(dit, quantized, samples) < 0.5
