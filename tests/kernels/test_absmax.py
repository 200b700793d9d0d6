"""The policy of row-wise integers, against numpy's float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.absmax import SMALLEST, largest, limit, quantize


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("clip", [None, 1.0, 0.5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_is_what_its_docstring_says(bits, clip, dtype):
    x = jnp.asarray(np.random.default_rng(bits).standard_normal((2, 5, 64)), dtype)
    wide, top = np.asarray(x, np.float32), limit(bits)
    covered = np.abs(wide).max(axis=-1) * np.float32(1.0 if clip is None else clip)
    expected = np.clip(np.round(wide * (np.float32(top) / covered)[..., None]), -top - 1, top)
    integers, scale = quantize(x, top, clip)
    assert integers.dtype == jnp.int8
    np.testing.assert_array_equal(integers, expected)
    np.testing.assert_allclose(scale, covered / np.float32(top), rtol=2e-7)


def test_ties_are_rounded_to_even():
    integers, _ = quantize(jnp.asarray([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]), limit(8))
    np.testing.assert_array_equal(integers, [[127, 0, 2, 2, 0, -2]])


def test_only_a_clip_reaches_the_smallest_integer():
    x = jnp.asarray([[-4.0, 1.0]])
    assert quantize(x, limit(8))[0].min() == -127
    assert quantize(x, limit(8), 0.5)[0].min() == -128


@pytest.mark.parametrize("clip", [None, 0.5])
def test_zeros_stay_zeros_with_finite_gradients(clip):
    x = jnp.zeros((2, 4))
    integers, scale = quantize(x, limit(4), clip)
    assert not integers.any()
    assert (scale > 0).all()
    assert largest(x).tolist() == [[np.float32(SMALLEST)]] * 2
    assert np.isfinite(jax.grad(lambda x: quantize(x, limit(4), clip)[1].sum())(x)).all()
