"""Quantizers: integers in range, error of half a step, the float form bit for bit, straight-through gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tolerances import FLOAT32_EPILOGUE, HALF_A_STEP

from pallas_kernels import quantize_tokens
from qsjax.quant.quantizer import (
    UNQUANTIZED,
    fake_tokens,
    fake_weight,
    limit,
    quantize_weight,
    weight_scale,
)

BITS = (2, 3, 4, 5, 6, 8)
ROWS, COLUMNS = 12, 5

numbers = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
# bfloat16's coarse grid puts many ratios exactly between two integers.
kernels = arrays(np.float32, (ROWS, COLUMNS), elements=numbers) | arrays(
    np.float32, (ROWS, COLUMNS), elements=st.integers(-128, 128).map(float)
)
clips = st.sampled_from([1.0, 0.9]) | arrays(
    np.float32, COLUMNS, elements=st.floats(0.25, 1, width=32)
)

compiled_quantize = jax.jit(quantize_weight, static_argnames=("bits", "group"))
compiled_fake = jax.jit(fake_weight, static_argnames=("bits", "group"))


def spread(scale):
    return np.repeat(scale, ROWS // len(scale), axis=0)


@given(kernels, st.sampled_from(BITS), clips, st.sampled_from([0, 4]))
@settings(max_examples=60)
def test_integers_scales_and_error(kernel, bits, clip, group):
    clip = jnp.broadcast_to(jnp.asarray(clip, jnp.float32), COLUMNS)
    integers, scale = map(np.asarray, quantize_weight(jnp.asarray(kernel), bits, clip, group=group))
    top = limit(bits)
    assert integers.dtype == np.int8
    assert scale.shape == (ROWS // (group or ROWS), COLUMNS)
    assert integers.min() >= -top - 1
    assert integers.max() <= top
    assert (scale > 0).all()
    kept = integers * spread(scale)
    np.testing.assert_array_equal(fake_weight(jnp.asarray(kernel), bits, clip, group=group), kept)
    inside = np.abs(kernel) <= top * spread(scale)
    assert (np.abs(kept - kernel) <= HALF_A_STEP * spread(scale))[inside].all()
    beyond = kernel > (top + 1) * spread(scale)
    assert (integers[beyond] == top).all()


@given(kernels, st.sampled_from([3, 4, 8]), st.sampled_from([0, 4]))
@settings(max_examples=20)
def test_compiled_and_not_compiled_agree_bit_for_bit(kernel, bits, group):
    clip = jnp.linspace(0.5, 1, COLUMNS, dtype=jnp.float32)
    kernel = jnp.asarray(kernel)
    for plain, compiled in (
        (quantize_weight, compiled_quantize),
        (fake_weight, compiled_fake),
    ):
        jax.tree.map(
            np.testing.assert_array_equal,
            plain(kernel, bits, clip, group=group),
            compiled(kernel, bits=bits, clip=clip, group=group),
        )


def test_columns_and_groups_are_quantized_apart():
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((ROWS, COLUMNS)), jnp.float32)
    integers, scale = quantize_weight(kernel, 4)
    some, their_scale = quantize_weight(kernel[:, 1:3], 4)
    np.testing.assert_array_equal(integers[:, 1:3], some)
    np.testing.assert_array_equal(scale[:, 1:3], their_scale)
    grouped, scales = quantize_weight(kernel, 4, group=4)
    for number, part in enumerate(jnp.split(kernel, 3)):
        one, its_scale = quantize_weight(part, 4)
        np.testing.assert_array_equal(grouped[4 * number : 4 * number + 4], one)
        np.testing.assert_array_equal(scales[number], its_scale[0])


def test_channels_and_tokens_of_zeros_have_finite_gradients():
    kernel = jnp.zeros((ROWS, COLUMNS)).at[:, 1].set(1.0)
    for group in (0, 3):
        integers, scale = quantize_weight(kernel, 4, group=group)
        assert np.isfinite(scale).all()
        np.testing.assert_array_equal(integers[:, 0], 0)
        np.testing.assert_array_equal(integers[:, 1], 7)
    tokens = jnp.zeros((2, 5)).at[1].set(2.0)
    assert not np.asarray(fake_tokens(tokens, 8))[0].any()

    @jax.jit
    def gradients(clip):
        of_weight = jax.grad(lambda *given: fake_weight(given[0], 4, given[1]).sum(), (0, 1))
        of_tokens = jax.grad(lambda *given: fake_tokens(given[0], 8, given[1]).sum(), (0, 1))
        dead = jax.grad(lambda clip: fake_weight(kernel[:, :1], 4, clip).sum())
        return of_weight(kernel, clip), of_tokens(tokens, clip), dead(clip)

    found = gradients(jnp.asarray(0.5))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert found[2] == 0


def test_sixteen_bits_change_nothing():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.bfloat16)
    assert fake_weight(x, UNQUANTIZED) is x
    assert fake_tokens(x, UNQUANTIZED) is x


@given(
    arrays(np.float32, (6, 8), elements=numbers),
    st.sampled_from([4, 6, 8]),
    st.sampled_from([1.0, 0.75]),
)
@settings(max_examples=30)
def test_fake_tokens_are_the_kernels_integers(x, bits, clip):
    integers, scale = quantize_tokens(jnp.asarray(x), bits=bits, clip=clip)
    kept = np.asarray(integers, np.float32) * np.asarray(scale)[:, None]
    np.testing.assert_array_equal(fake_tokens(jnp.asarray(x), bits, clip), kept)


def test_tokens_keep_their_dtype_and_leading_axes():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 8)), jnp.bfloat16)
    y = fake_tokens(x, 8)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.reshape(6, 8), fake_tokens(x.reshape(6, 8), 8))


def test_gradient_of_tokens_is_straight_through():
    """The largest value makes the scale; all others see the identity."""
    x = jnp.asarray(np.random.default_rng(3).standard_normal((1, 9)), jnp.float32)
    largest = int(np.abs(np.asarray(x)).argmax())
    jacobian = jax.jit(jax.jacobian(lambda x: fake_tokens(x, 8)[0]))(x)[:, 0]
    others = np.delete(np.arange(9), largest)
    np.testing.assert_allclose(
        np.asarray(jacobian)[:, others], np.eye(9)[:, others], atol=FLOAT32_EPILOGUE
    )


@pytest.mark.parametrize("group", [0, 4])
def test_gradient_with_respect_to_the_clip(group):
    """d (s q) / d clip = (a / Q) (q - w / s) inside the range, where only s moves; (a / Q) q beyond it."""
    random = np.random.default_rng(1)
    kernel = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    clip = jnp.full(COLUMNS, 0.5, jnp.float32)
    scale = np.asarray(weight_scale(jnp.asarray(kernel), 4, clip, group=group), np.float64)
    integers = np.asarray(quantize_weight(jnp.asarray(kernel), 4, clip, group=group)[0])
    slope, ratio = spread(scale) / 0.5, kernel / spread(scale)
    inside = (ratio > -8.5) & (ratio < 7.5)
    expected = slope * np.where(inside, integers - ratio, integers)
    assert 0 < inside.sum() < inside.size
    weights = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)

    def loss(clip):
        return (fake_weight(jnp.asarray(kernel), 4, clip, group=group) * weights).sum()

    gradient = jax.jit(jax.grad(loss))(clip)
    np.testing.assert_allclose(gradient, (expected * weights).sum(axis=0), rtol=1e-4, atol=1e-5)


def test_clip_gradient_where_everything_is_beyond_is_the_finite_difference():
    kernel = jnp.asarray([[1.0], [-1.0], [0.9]])

    def total(clip):
        return (fake_weight(kernel, 4, clip) * jnp.asarray([[1.0], [2.0], [3.0]])).sum()

    step = 2.0**-10
    difference = (total(0.5 + step) - total(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(0.5), difference, rtol=1e-4)
