"""Lists by the means of blocks: what is chosen, what is forced, what padding must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import FLOAT32_NETWORK

from qsjax.sparse import Layout
from qsjax.sparse.pooled import best, lists_of, pooled_scores, share

OWN = jnp.eye(6, dtype=jnp.bool_)


@pytest.fixture(scope="module")
def scores():
    return jnp.asarray(3 * np.random.default_rng(0).standard_normal((2, 3, 6, 6)), jnp.float32)


def test_scores_are_products_of_means_without_padding():
    random = np.random.default_rng(0)
    q, k = (random.standard_normal((1, 2, 9, 4)).astype(np.float32) for _ in range(2))
    # Blocks of 4 queries and 3 keys; the last one of queries holds one token.
    found = pooled_scores(jnp.asarray(q), jnp.asarray(k), Layout.frame_major((1, 1, 9), 4, 3))
    means = [
        np.array([x[0, :, n : n + size].mean(axis=1) for n in range(0, 9, size)])
        for x, size in ((q, 4), (k, 3))
    ]
    expected = np.einsum("nhd,mhd->hnm", *means) / 2
    np.testing.assert_allclose(found[0], expected, atol=FLOAT32_NETWORK)


def test_a_block_of_padding_is_never_chosen():
    x = jnp.ones((1, 1, 8, 4))
    found = pooled_scores(x, x, Layout((1, 1, 8), (1, 1, 12), 4))
    assert found.shape == (1, 1, 3, 3)
    assert not np.asarray(best(found, 2, jnp.zeros((1, 3), jnp.bool_)))[..., 2].any()


def test_the_best_of_every_row_and_its_own_block(scores):
    seen = np.asarray(best(scores, 3, OWN))
    assert (seen.sum(axis=-1) == 3).all()
    assert np.diagonal(seen, axis1=2, axis2=3).all()
    for place in np.ndindex(2, 3, 6):
        row = np.asarray(scores[place])
        others = np.delete(np.arange(6), place[-1])
        top = others[np.argsort(-row[others])[:2]]
        assert seen[place][top].all()


def test_what_is_forced_takes_a_place(scores):
    forced = OWN.at[:, 4].set(True)
    seen = np.asarray(best(scores, 3, forced))
    assert seen[..., 4].all()
    assert (seen.sum(axis=-1) == 3).all()


@pytest.mark.parametrize("mass", [0.3, 0.8, 0.99])
def test_a_share_is_reached_with_as_few_blocks_as_possible(scores, mass):
    seen = np.asarray(share(scores, mass, 6, OWN, jnp.ones(6)))
    weights = np.asarray(jax.nn.softmax(scores, axis=-1))
    kept = (weights * seen).sum(axis=-1)
    assert (kept >= mass - 1e-6).all()
    own = np.eye(6, dtype=bool)[None, None]
    smallest = np.where(seen & ~own, weights, np.inf).min(axis=-1)
    several = (seen & ~own).any(axis=-1)
    assert (kept - smallest < mass)[several].all()


def test_a_share_has_a_limit(scores):
    seen = np.asarray(share(scores, 1.0, 2, OWN, jnp.ones(6)))
    assert (seen.sum(axis=-1) <= 2).all()
    assert np.diagonal(seen, axis1=2, axis2=3).all()


def test_text_is_in_every_list(scores):
    lists = jax.jit(lambda s: lists_of(best(s, 2, OWN), 2, block_q=4, block_kv=4, longest=2))(
        scores
    )
    assert lists.indices.shape == (2, 3, 6, 4)
    np.testing.assert_array_equal(lists.indices[..., 2:], np.broadcast_to([6, 7], (2, 3, 6, 2)))
    assert (lists.counts == 4).all()
