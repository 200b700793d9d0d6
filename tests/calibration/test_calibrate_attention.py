"""Attention of calibration against maps that are held whole, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import BFLOAT16_CAST, FLOAT32_NETWORK

from qsjax.calibration import attention as module
from qsjax.calibration import flash


@pytest.fixture(params=[False, True], ids=["whole", "tiled"])
def heads(request, monkeypatch):
    """Queries, keys, values [2, 23, 3, 8], the last tokens of one sample padded: with tiles, two of keys are all padding."""
    if request.param:
        monkeypatch.setattr(flash, "_WHOLE", 4)
        monkeypatch.setattr(flash, "_LANES", 1)
        monkeypatch.setattr(flash, "_QUERIES", (7, 7))
        monkeypatch.setattr(flash, "_KEYS", (3, 3))
        monkeypatch.setattr(module, "_TILE_BYTES", 4 * 23 * 5)
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.standard_normal((2, 23, 3, 8)), jnp.float32) for _ in range(3))
    valid = jnp.asarray(np.arange(23)[None] < np.array([[23], [17]]))
    return q, k, v, valid


def full_map(q, k, valid):
    q, k = (np.asarray(x, np.float64) for x in (q, k))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.asarray(valid)[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def gradients(q, k, v, valid, gradient):
    """Of sum(gradient * attention), with every map written out."""
    weights = full_map(q, k, valid)
    q, k, v, gradient = (np.asarray(x, np.float64) for x in (q, k, v, gradient))
    of_weights = np.einsum("bqhd,bkhd->bhqk", gradient, v)
    mean = (weights * of_weights).sum(axis=-1, keepdims=True)
    of_scores = weights * (of_weights - mean) / np.sqrt(q.shape[-1])
    return (
        np.einsum("bhqk,bkhd->bqhd", of_scores, k),
        np.einsum("bhqk,bqhd->bkhd", of_scores, q),
        np.einsum("bhqk,bqhd->bkhd", weights, gradient),
    )


def test_attention_is_softmax_of_all_scores(heads):
    q, k, v, valid = heads
    out, (same_q, same_k) = module.attention(q, k, v, valid, ())
    expected = np.einsum("bhqk,bkhd->bqhd", full_map(q, k, valid), v)
    np.testing.assert_allclose(out, expected, atol=FLOAT32_NETWORK)
    assert same_q is q
    assert same_k is k


def test_gradients_of_attention(heads):
    *given, valid = heads
    gradient = jnp.asarray(np.random.default_rng(1).standard_normal(given[0].shape), jnp.float32)
    _, pullback = jax.vjp(lambda *given: flash.flash_attention(*given, valid), *given)
    for ours, expected in zip(pullback(gradient), gradients(*heads, gradient), strict=True):
        np.testing.assert_allclose(ours, expected, atol=FLOAT32_NETWORK)
    # A padded key moves nothing.
    assert float(jnp.abs(pullback(gradient)[1][1, 17:]).max()) == 0


def test_bfloat16_sums_are_float32(heads):
    *given, valid = heads
    given = [x.astype(jnp.bfloat16) for x in given]
    out, pullback = jax.vjp(lambda *given: flash.flash_attention(*given, valid), *given)
    found = (out, *pullback(given[0]))
    exact = np.einsum(
        "bhqk,bkhd->bqhd", full_map(*given[:2], valid), np.asarray(given[2], np.float64)
    )
    for ours, expected in zip(found, (exact, *gradients(*given, valid, given[0])), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), expected, atol=2 * BFLOAT16_CAST * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    ("length", "rows", "columns"),
    [(597, 597, 597), (2049, 2176, 768), (8448, 2816, 768), (33_000, 3328, 768)],
)
def test_tiles_have_little_padding(length, rows, columns):
    assert flash._size(length, flash._QUERIES) == rows
    assert flash._size(length, flash._KEYS) == columns


def test_memory_does_not_grow_with_the_map():
    """The map of two heads and 8,192 tokens has 537 MB."""

    def loss(q, k, v, valid, rows):
        distance = module.row_distance((q, k), (k, q), valid, rows)
        return flash.flash_attention(q, k, v, valid).sum() + distance

    def temporary(length):
        one = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        valid, rows = (jax.ShapeDtypeStruct((1, length), kind) for kind in (bool, jnp.int32))
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        return step.lower(one, one, one, valid, rows).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8192) < 150e6


def test_saliency_is_the_column_sum_over_valid_rows(heads):
    q, k, _, valid = heads
    weights = full_map(q, k, valid) * np.asarray(valid)[:, None, :, None]
    received = module.saliency(q, k, valid)
    np.testing.assert_allclose(received, weights.sum(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    assert float(received[1, 17:].max()) == 0


def test_distance_of_rows_and_its_gradient(heads):
    q, k, other, valid = heads
    rows = jnp.asarray([[0, 5, 17, 3, 4, 22, 9], [1, 2, 3, 16, 10, 11, 12]], jnp.int32)

    def dense(q, k):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8)
        return jax.nn.softmax(jnp.where(valid[:, None, None], scores, -jnp.inf), axis=-1)

    def expected(q, k):
        squares = jnp.square(dense(q, k) - dense(other, k))
        return jnp.stack([squares[b][:, rows[b]] for b in range(2)]).mean()

    maps = [full_map(x, k, valid) for x in (q, other)]
    exact = np.stack([np.square(maps[0] - maps[1])[b][:, rows[b]] for b in range(2)]).mean()

    def found(q, k):
        return module.row_distance((q, k), (other, k), valid, rows)

    np.testing.assert_allclose(found(q, k), exact, rtol=1e-5)
    ours, theirs = (jax.grad(function, argnums=(0, 1))(q, k) for function in (found, expected))
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5 * float(jnp.abs(two).max()))


def test_pooled_map_averages_windows_of_tokens_that_are_there(heads):
    q, k, _, valid = heads
    found = module.pooled_attention(q, k, valid, 16, 6)  # video 6 + 6 + 4, then text
    for b, text_end in ((0, 23), (1, 17)):
        edges = [(0, 6), (6, 12), (12, 16), (16, text_end)]
        mean_q, mean_k = (
            np.stack([np.asarray(x[b, i:j]).mean(axis=0) for i, j in edges])[None] for x in (q, k)
        )
        everything = np.ones((1, 4), bool)
        np.testing.assert_allclose(
            found[b], full_map(mean_q, mean_k, everything)[0], atol=FLOAT32_NETWORK
        )
