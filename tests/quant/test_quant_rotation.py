"""Rotations: orthogonal, flat where they are Hadamard's, and invisible between input and weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_models import distance
from tolerances import CAYLEY, FLOAT32_EPILOGUE, FLOAT32_NETWORK

from qsjax.errors import InputError
from qsjax.quant.quantizer import fake_tokens
from qsjax.quant.rotation import Rotation, cayley, hadamard, rotate, rotate_rows, start, turned


def orthogonal(size, seed=0):
    random = np.random.default_rng(seed)
    return np.linalg.qr(random.standard_normal((size, size)))[0].astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 24, 32, 60, 64, 96, 120, 128])
def test_hadamard(size):
    matrix = hadamard(size)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(np.abs(matrix), np.float32(1 / np.sqrt(size)))
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(wide @ wide.T, np.eye(size), atol=FLOAT32_EPILOGUE)


@pytest.mark.parametrize("size", [3, 6, 9, 36, 100])
def test_unknown_orders_are_refused(size):
    with pytest.raises(InputError, match=f"order {size} is known"):
        hadamard(size)


@given(st.integers(0, 99), st.sampled_from([0.0, 0.1, 1.0, 10.0]), st.sampled_from([3, 64]))
@settings(max_examples=20)
def test_cayley_is_orthogonal_whatever_the_generator(seed, size, order):
    generator = size * np.random.default_rng(seed).standard_normal((order, order))
    matrix = np.asarray(cayley(jnp.asarray(generator, jnp.float32)), np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(order), atol=CAYLEY)
    if size == 0:
        np.testing.assert_array_equal(matrix, np.eye(order))


def test_turned_starts_at_hadamard():
    rotation = start("kronecker", 64, 16)
    zeros = Rotation(*(jnp.zeros(factor.shape) for factor in rotation))
    for factor, still in zip(rotation, turned(rotation, zeros), strict=True):
        np.testing.assert_allclose(still, factor, atol=FLOAT32_EPILOGUE)
    assert turned(Rotation(rotation.runs), Rotation(zeros.runs)).mix is None


@given(
    st.integers(0, 99),
    st.sampled_from([(16, None), (12, None), (16, 3), (24, 2), (48, None)]),
)
@settings(max_examples=20)
def test_rotation_is_invisible_between_input_and_weights(seed, sizes):
    runs, mix = sizes
    rotation = Rotation(orthogonal(runs, seed), None if mix is None else orthogonal(mix, seed))
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((2, 5, 48)), jnp.float32)
    kernel = jnp.asarray(random.standard_normal((48, 7)), jnp.float32)
    product = rotate(x, rotation) @ rotate_rows(kernel, rotation)
    assert distance(product, x @ kernel) < FLOAT32_NETWORK
    np.testing.assert_allclose(
        jnp.linalg.norm(rotate(x, rotation), axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["kronecker", "hadamard"])
def test_two_hadamard_factors_are_the_full_transform(kind):
    rotation = start(kind, 96, 8)
    full = np.kron(rotation.mix, rotation.runs)
    np.testing.assert_allclose(np.abs(full), 1 / np.sqrt(96), rtol=1e-6)
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    assert distance(rotate(jnp.asarray(x), rotation), x @ full) < FLOAT32_NETWORK


@pytest.mark.parametrize(
    ("kind", "channels", "size", "runs", "mix"),
    [
        ("none", 3072, 128, None, None),
        ("block", 3072, 128, 128, None),
        ("kronecker", 3072, 128, 128, 24),
        ("hadamard", 12288, 128, 128, 96),
        ("hadamard", 3072, 128, 128, 24),
        ("hadamard", 128, 128, 128, None),
        ("hadamard", 512, 128, 128, 4),
        ("block", 48, 128, 48, None),
        ("kronecker", 48, 128, 48, None),
        ("block", 72, 36, 24, None),
        ("kronecker", 48, 16, 12, 4),
    ],
)
def test_start(kind, channels, size, runs, mix):
    rotation = start(kind, channels, size)
    if runs is None:
        assert rotation is None
        return
    assert rotation.runs.shape == (runs, runs)
    assert mix is None if rotation.mix is None else rotation.mix.shape == (mix, mix)


def test_channels_without_two_hadamard_factors():
    assert start("block", 36, 16).runs.shape == (12, 12)
    with pytest.raises(InputError, match="choose the rotation 'block'"):
        start("kronecker", 36, 16)


@pytest.mark.parametrize("kind", ["block", "kronecker"])
def test_signs_turn_rows_of_the_hadamard_matrices(kind):
    plain, signed = start(kind, 96, 8), start(kind, 96, 8, seed=3)
    for matrix, other in zip(plain, signed, strict=True):
        if matrix is None:
            assert other is None
            continue
        ratio = other / matrix
        assert set(np.unique(ratio)) == {-1, 1}
        np.testing.assert_array_equal(ratio, np.broadcast_to(ratio[:, :1], ratio.shape))
        again, unlike = (start(kind, 96, 8, seed=seed) for seed in (3, 4))
        np.testing.assert_array_equal(again.runs, signed.runs)
        assert (unlike.runs != signed.runs).any()
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.standard_normal(s), jnp.float32) for s in ((5, 96), (96, 7)))
    product = rotate(x, signed) @ rotate_rows(kernel, signed)
    assert distance(product, x @ kernel) < FLOAT32_NETWORK


def test_the_signs_of_a_seed_are_always_the_same():
    """A conversion is checked against its sources years later."""
    signs = np.sign(start("block", 16, 16, seed=0).runs[:, 0] / hadamard(16)[:, 0])
    assert "".join("+-"[int(sign < 0)] for sign in signs) == "-+++-------+-+-+"


@pytest.mark.parametrize(("kind", "channels"), [("block", 128), ("hadamard", 3072)])
def test_signs_spread_the_mean_of_an_input(kind, channels):
    """Without them a mean is gathered in one channel, beside which the others are rounded away."""
    x = np.random.default_rng(0).standard_normal((64, channels)).astype(np.float32)

    def error(x, seed):
        rotated = rotate(jnp.asarray(x), start(kind, channels, 128, seed=seed))
        return distance(fake_tokens(rotated, 4), rotated)

    assert error(x + 3, 0) < 0.7 * error(x + 3, None)
    np.testing.assert_allclose(error(x, 0), error(x, None), rtol=0.05)


def test_no_rotation_is_the_identity():
    x = jnp.ones((2, 3))
    assert rotate(x, None) is x


def test_operands_keep_their_dtype():
    x = jnp.ones((2, 48), jnp.bfloat16)
    assert rotate(x, Rotation(orthogonal(16), orthogonal(3))).dtype == jnp.bfloat16
