"""Subspace iteration against the singular value decomposition."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import FLOAT32_NETWORK

from qsjax.residual.lowrank import expanded, factorize, start


def matrix(rank, decay=1.0, seed=0, shape=(2, 50, 3, 8)):
    random = np.random.default_rng(seed)
    batch, tokens, heads, channels = shape
    u = random.standard_normal((batch, tokens, rank)) * decay ** np.arange(rank)
    v = random.standard_normal((batch, rank, heads * channels))
    return jnp.asarray((u @ v).reshape(shape) / np.sqrt(rank), jnp.float32)


@pytest.mark.parametrize("rank", [4, 6])
def test_a_true_rank_is_reproduced(rank):
    x = matrix(4)
    found = factorize(x, start(2, 50, 3, 8, rank, jnp.float32))
    np.testing.assert_allclose(expanded(found), x, atol=3 * FLOAT32_NETWORK)


def test_nearly_the_best_of_a_rank_and_warm_starts_are_better():
    x, later = matrix(24, decay=0.8), matrix(24, decay=0.8) + 0.02 * matrix(24, seed=1)

    def error(found, x):
        return float(jnp.linalg.norm(expanded(found) - x))

    def best(x):
        values = np.linalg.svd(np.asarray(x).reshape(2, 50, 24), compute_uv=False)
        return float(np.sqrt(np.square(values[:, 6:]).sum()))

    cold = start(2, 50, 3, 8, 6, jnp.float32)
    found = factorize(x, cold)
    assert best(x) <= error(found, x) < 1.1 * best(x)
    warm = factorize(later, found, passes=1)
    assert error(warm, later) < min(
        1.05 * best(later), error(factorize(later, cold, passes=1), later)
    )


def test_directions_are_orthonormal():
    found = factorize(matrix(24), start(2, 50, 3, 8, 6, jnp.float32))
    basis = found.v.transpose(0, 2, 1, 3).reshape(2, 6, 24)
    for one in basis:
        np.testing.assert_allclose(one @ one.T, np.eye(6), atol=FLOAT32_NETWORK)


def test_nothing_changed_is_nothing_and_stays_finite():
    first = start(1, 5, 2, 4, 3, jnp.float32)
    found = factorize(jnp.zeros((1, 5, 2, 4)), first)
    assert not np.asarray(found.u).any()
    assert np.isfinite(found.v).all()
    x = matrix(3, shape=(1, 5, 2, 4))
    np.testing.assert_allclose(expanded(factorize(x, found)), x, atol=3 * FLOAT32_NETWORK)
