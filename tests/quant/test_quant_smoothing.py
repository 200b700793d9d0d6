"""Smoothing: SmoothQuant's formula, and a division that disappears in the modulation layer."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_models import distance
from tolerances import FLOAT32_NETWORK

from qsjax.dit.norms import modulate
from qsjax.quant.smoothing import absorb, smoothquant


@given(st.integers(0, 99), st.sampled_from([0.0, 0.15, 0.5, 1.0]))
@settings(max_examples=20)
def test_formula(seed, alpha):
    random = np.random.default_rng(seed)
    peak = random.uniform(0.01, 30, 16).astype(np.float32)
    kernel = random.standard_normal((16, 5)).astype(np.float32)
    found = np.asarray(smoothquant(jnp.asarray(peak), jnp.asarray(kernel), alpha), np.float64)
    expected = peak.astype(np.float64) ** alpha / np.abs(kernel).max(axis=1) ** (1 - alpha)
    expected /= np.exp(np.log(expected).mean())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_dead_channels_stay_finite_and_positive():
    found = smoothquant(jnp.zeros(4), jnp.zeros((4, 3)), 0.5)
    np.testing.assert_allclose(found, 1, rtol=1e-6)
    found = smoothquant(jnp.asarray([0.0, 1e6, 1.0, 1.0]), jnp.ones((4, 3)), 1.0)
    assert np.isfinite(found).all()
    assert (np.asarray(found) > 0).all()


@pytest.mark.parametrize("first", [0, 3])
def test_absorbed_division(first):
    random = np.random.default_rng(first)
    width = 24

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    kernel, bias, active, x = normal(8, 6 * width), normal(6 * width), normal(2, 8), normal(2, 5, width)  # fmt: skip
    smoothing = jnp.asarray(random.uniform(0.2, 5, width), jnp.float32)
    changed, moved = absorb(kernel, bias, smoothing, first)
    before = jnp.split(active @ kernel + bias[None], 6, axis=-1)
    after = jnp.split(active @ changed + moved[None], 6, axis=-1)
    found = modulate(x, after[first], after[first + 1])
    expected = modulate(x, before[first], before[first + 1]) / smoothing[None, None]
    assert distance(found, expected) < FLOAT32_NETWORK
    for number in set(range(6)) - {first, first + 1}:
        np.testing.assert_array_equal(after[number], before[number])
