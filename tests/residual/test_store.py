"""Stores: how far off they are, and what they weigh."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import BFLOAT16_CAST

from qsjax.errors import InputError
from qsjax.residual.store import BYTES, empty, opened, restored, store

# Relative to a token's peak: half a step of the grid, the cast to bfloat16, nothing.
ERRORS = {"float32": 0.0, "bfloat16": BFLOAT16_CAST, "int8": 0.5 / 127, "int4": 0.5 / 7}


@pytest.fixture(scope="module")
def x():
    random = np.random.default_rng(0)
    spread = np.exp(random.standard_normal((2, 7, 3, 1)))
    return jnp.asarray(spread * random.standard_normal((2, 7, 3, 8)), jnp.float32)


@pytest.mark.parametrize("kind", BYTES)
def test_errors_are_those_of_the_grid(kind, x):
    kept = store(x, kind)
    peak = jnp.abs(x).max(axis=-1, keepdims=True)
    error = jnp.abs(restored(kept, kind) - x) / peak
    assert float(error.max()) <= ERRORS[kind] + 1e-6
    if ERRORS[kind]:
        assert float(error.max()) > 0.5 * ERRORS[kind]


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_of_a_value(kind, x):
    kept = store(x, kind)
    assert kept.values.nbytes == BYTES[kind] * x.size
    assert (kept.scale is None) == (kind in ("float32", "bfloat16"))
    assert opened(kept, kind).values.shape == x.shape


def test_every_four_bit_pattern_comes_back():
    levels = np.arange(-7, 8, dtype=np.float32)
    pairs = np.stack(np.meshgrid(levels, levels), axis=-1).reshape(1, -1, 1, 2)
    pairs = np.concatenate([pairs, np.full_like(pairs, 7)], axis=-1)  # a peak of 7 each
    np.testing.assert_allclose(
        restored(store(jnp.asarray(pairs), "int4"), "int4"), pairs, atol=1e-5
    )


@pytest.mark.parametrize("kind", BYTES)
def test_words_hold_the_same_values(kind, x):
    x = jnp.concatenate([x, -x[:, :5]], axis=1)  # twelve tokens
    words, plain = store(x, kind, words=True), store(x, kind)
    assert words.values.nbytes == plain.values.nbytes
    assert (words.values.dtype == jnp.int32) == kind.startswith("int")
    np.testing.assert_array_equal(opened(words, kind).values, opened(plain, kind).values)
    nothing = empty(kind, x.shape, words=True)
    assert nothing.values.shape == words.values.shape
    assert not np.asarray(restored(nothing, kind)).any()


def test_zeros_stay_zeros():
    for kind in BYTES:
        kept = empty(kind, (1, 4, 2, 8))
        assert not np.asarray(restored(kept, kind)).any()


def test_what_is_refused():
    with pytest.raises(InputError, match="did you mean 'int8'"):
        empty("int9", (1, 1, 1, 2))
    with pytest.raises(InputError, match="even number"):
        empty("int4", (1, 1, 1, 3))
    with pytest.raises(InputError, match="by fours, not 7"):
        empty("int8", (1, 7, 1, 2), words=True)
