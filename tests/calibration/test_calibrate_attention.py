import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import FLOAT32_NETWORK

from qsjax.calibration import attention as module
from qsjax.dit.attention import dense_attention


@pytest.fixture(params=[False, True], ids=["whole", "chunked"])
def heads(request, monkeypatch):
    """Queries, keys, values [2, 23, 3, 8], the last tokens of one sample padded; scores at once or some rows at a time."""
    if request.param:
        monkeypatch.setattr(module, "_SCORE_BYTES", 4 * 2 * 3 * 23 * 5)
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.standard_normal((2, 23, 3, 8)), jnp.float32) for _ in range(3))
    valid = jnp.asarray(np.arange(23)[None] < np.array([[23], [18]]))
    return q, k, v, valid


def full_map(q, k, valid):
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.asarray(valid)[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_attention_is_dense_attention(heads):
    q, k, v, valid = heads
    out, (same_q, same_k) = module.attention(q, k, v, valid, ())
    expected, _ = dense_attention(q, k, v, valid)
    np.testing.assert_allclose(out, expected, atol=FLOAT32_NETWORK)
    assert same_q is q
    assert same_k is k


def test_gradients_do_not_depend_on_the_chunks(heads):
    q, k, v, valid = heads

    def loss(attend):
        return lambda q, k, v: jnp.sin(attend(q, k, v, valid, ())[0]).sum()

    ours = jax.grad(loss(module.attention), argnums=(0, 1, 2))(q, k, v)
    theirs = jax.grad(loss(dense_attention), argnums=(0, 1, 2))(q, k, v)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=FLOAT32_NETWORK)


def test_saliency_is_the_column_sum_over_valid_rows(heads):
    q, k, _, valid = heads
    weights = full_map(q, k, valid) * np.asarray(valid)[:, None, :, None]
    received = module.saliency(q, k, valid)
    np.testing.assert_allclose(received, weights.sum(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    assert float(received[1, 18:].max()) == 0


def test_rows_are_rows_of_the_map(heads):
    q, k, _, valid = heads
    rows = jnp.asarray([[0, 5, 17], [1, 2, 3]], jnp.int32)
    found = module.attention_rows(q, k, valid, rows)
    expected = np.stack([full_map(q, k, valid)[b][:, rows[b]] for b in range(2)])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pooled_map_averages_windows_of_tokens_that_are_there(heads):
    q, k, _, valid = heads
    found = module.pooled_attention(q, k, valid, 16, 6)  # video 6 + 6 + 4, then text
    for b, text_end in ((0, 23), (1, 18)):
        edges = [(0, 6), (6, 12), (12, 16), (16, text_end)]
        mean_q, mean_k = (
            np.stack([np.asarray(x[b, i:j]).mean(axis=0) for i, j in edges])[None] for x in (q, k)
        )
        everything = np.ones((1, 4), bool)
        np.testing.assert_allclose(
            found[b], full_map(mean_q, mean_k, everything)[0], atol=FLOAT32_NETWORK
        )
