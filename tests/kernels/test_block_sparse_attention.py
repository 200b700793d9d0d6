import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import BFLOAT16_CAST, float32_sum

from pallas_kernels.block_sparse_attention import (
    BLOCK_SPARSE_ATTENTION,
    Additive,
    BlockLists,
    Complement,
    attention_with_residual,
    block_sparse_attention,
    xla,
)
from pallas_kernels.block_sparse_attention.cache import EMPTY

# Lists of one size, so that each form is compiled once.
attend = jax.jit(block_sparse_attention, static_argnames=("return_lse", "scores", "implementation"))

LENGTH, BLOCK_Q, BLOCK_KV = 83, 16, 32  # neither block divides the length
ROWS, COLUMNS = 6, 3
TIGHT = {"atol": 8 * float32_sum(LENGTH), "rtol": 8 * float32_sum(LENGTH)}


def heads(*, batch=2, length=LENGTH, count=2, size=16, dtype=jnp.float32, loud=1.0):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (batch, length, count, size)) for key in keys)
    return (loud * q).astype(dtype), k.astype(dtype), v.astype(dtype)


def lists(density=0.5, *, batch=2, count=2, seed=0):
    block_map = np.random.default_rng(seed).random((batch, count, ROWS, COLUMNS)) < density
    return BlockLists.from_block_map(block_map, block_q=BLOCK_Q, block_kv=BLOCK_KV, longest=COLUMNS)


def valid(batch=2):
    """A hole in the middle and a tail, as unused text slots behind a partial last block of video leave them."""
    mask = np.ones((batch, LENGTH), bool)
    mask[0, 60:64] = mask[0, -7:] = False
    return jnp.asarray(mask)


def by_hand(q, k, v, blocks, kv_valid, scale):
    """numpy, float64, one query at a time, from the definition."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, length, count, _ = q.shape
    shape = (batch, count, blocks.q_blocks, blocks.kv_blocks)
    seen_blocks = np.broadcast_to(blocks.block_map(), shape)
    out, lse = np.zeros(q.shape), np.full((batch, count, length), EMPTY)
    for b, h, i in np.ndindex(batch, count, length):
        row = seen_blocks[b, h, i // blocks.block_q]
        keys = np.flatnonzero(row[np.arange(length) // blocks.block_kv] & np.asarray(kv_valid)[b])
        if len(keys):
            scores = k[b, keys, h] @ q[b, i, h] * scale
            peak = scores.max()
            weights = np.exp(scores - peak)
            out[b, i, h] = weights @ v[b, keys, h] / weights.sum()
            lse[b, h, i] = peak + np.log(weights.sum())
    return out, lse


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@settings(max_examples=12)
@given(
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    loud=st.sampled_from([1e-3, 1.0, 300.0]),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_lists_equal_masked_attention(implementation, density, loud, shared, seed):
    q, k, v = heads(loud=loud)
    blocks = lists(density, batch=1 if shared else 2, count=1 if shared else 2, seed=seed)
    out, lse = attend(
        q, k, v, blocks, kv_valid=valid(), return_lse=True, implementation=implementation
    )
    expected, expected_lse = by_hand(q, k, v, blocks, valid(), q.shape[-1] ** -0.5)
    # Scores of size `loud` have rounding errors of that size, which the softmax passes on.
    np.testing.assert_allclose(out, expected, atol=TIGHT["atol"] * max(1, loud))
    np.testing.assert_allclose(lse, expected_lse, atol=TIGHT["atol"] * max(1, loud), rtol=1e-6)


def test_what_is_not_listed_is_never_read():
    q, k, v = heads()
    block_map = np.random.default_rng(0).random((2, 2, ROWS, COLUMNS)) < 0.4
    for b, h in np.ndindex(2, 2):
        block_map[b, h, :, (b + h) % COLUMNS] = False
    blocks = BlockLists.from_block_map(block_map, block_q=16, block_kv=32, longest=COLUMNS)
    expected = attend(q, k, v, blocks, implementation="xla")
    # A block of keys that no list of a head names is poisoned; 0 times NaN would show.
    unused = np.repeat(~block_map.any(axis=2), BLOCK_KV, axis=2)[:, :, :LENGTH]
    k, v = (jnp.where(unused.transpose(0, 2, 1)[..., None], jnp.nan, x) for x in (k, v))
    assert np.isnan(k).any()
    np.testing.assert_array_equal(attend(q, k, v, blocks, implementation="xla"), expected)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("scores", ["float", "int8"])
def test_masked_keys_and_values_may_hold_anything(implementation, scores):
    (q, k, v), kv_valid, blocks = heads(), valid(), lists()
    plain, broken = (
        attend(
            q,
            *(jnp.where(kv_valid[..., None, None], x, fill) for x in (k, v)),
            blocks,
            kv_valid=kv_valid,
            scores=scores,
            implementation=implementation,
        )
        for fill in (0, jnp.nan)
    )
    assert np.array_equal(plain, broken)
    assert np.isfinite(plain).all()


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("density", [0.4, 0.9])
def test_entries_behind_the_count_are_ignored(implementation, density):
    q, k, v = heads()
    blocks = lists(density)
    behind = jnp.arange(COLUMNS)[None, None, None] >= blocks.counts[..., None]
    other = dataclasses.replace(blocks, indices=jnp.where(behind, COLUMNS - 1, blocks.indices))
    results = (attend(q, k, v, one, implementation=implementation) for one in (blocks, other))
    np.testing.assert_array_equal(*results)


def test_no_keys_give_zero_and_nothing_is_nan():
    q, k, v = heads()
    empty = lists(0.0)
    out, lse = attend(q, k, v, empty, return_lse=True, implementation="xla")
    assert not np.asarray(out).any()
    assert (np.asarray(lse) == np.float32(EMPTY)).all()
    nothing_valid = jnp.zeros((2, LENGTH), bool)
    out, lse = attend(
        q, k, v, lists(1.0), kv_valid=nothing_valid, return_lse=True, implementation="xla"
    )
    assert not np.asarray(out).any()
    assert (np.asarray(lse) == np.float32(EMPTY)).all()

    def loss(q):
        out, lse = block_sparse_attention(q, k, v, empty, return_lse=True, implementation="xla")
        return out.sum() + jnp.where(lse > EMPTY, lse, 0.0).sum()

    assert not np.asarray(jax.jit(jax.grad(loss))(q)).any()


@pytest.mark.parametrize(
    "kind",
    ["additive", "additive_int8", "complement", "complement_int8", "following", "following_int8"],
)
@pytest.mark.parametrize("rank", [0, 3])
def test_the_cache_is_applied_before_the_store(kind, rank):
    q, k, v = heads()
    random = np.random.default_rng(1)
    shape = q.shape
    low_rank = None
    if rank:
        u, w = random.normal(size=(2, rank, LENGTH)), random.normal(size=(2, 2, rank, 16))
        low_rank = (jnp.asarray(u, jnp.float32), jnp.asarray(w, jnp.float32))
    if kind.endswith("int8"):
        values = random.integers(-127, 128, shape, np.int8)
        scale = random.uniform(0, 0.02, (2, 2, LENGTH)).astype(np.float32)
        wide = values * scale.swapaxes(1, 2)[..., None]
    else:
        values, scale = random.normal(size=shape).astype(np.float32), None
        wide = values
    if rank:
        wide = wide + np.einsum("brl,bhrd->blhd", u, w)
    blocks = lists(0.5)
    listed, lse = by_hand(q, k, v, blocks, valid(), 0.25)
    if kind.startswith("additive"):
        cache, expected = Additive(values, scale, low_rank), listed + wide
    else:
        cached_lse = random.normal(size=(2, 2, LENGTH)).astype(np.float32)
        follow = 0.5 if kind.startswith("following") else 0.0
        cache = Complement(values, scale, cached_lse, low_rank, follow)
        a = 1 / (1 + np.exp(np.clip(cached_lse - lse, -700, 700)))
        a = a.swapaxes(1, 2)[..., None]
        expected = a * listed + (1 - a) * (wide + follow * listed)
    out = attend(q, k, v, blocks, kv_valid=valid(), cache=cache, implementation="xla")
    np.testing.assert_allclose(out, expected, **TIGHT)


def test_a_refresh_is_full_attention_and_knows_the_rest():
    q, k, v = heads()
    blocks, everything = lists(0.4), lists(1.0)
    out, found, others, others_lse, recall = jax.jit(attention_with_residual)(
        q, k, v, blocks, kv_valid=valid()
    )
    full, full_lse = by_hand(q, k, v, everything, valid(), 0.25)
    np.testing.assert_allclose(out, full, **TIGHT)
    listed, lse = by_hand(q, k, v, blocks, valid(), 0.25)
    np.testing.assert_allclose(found, listed, **TIGHT)
    weight = np.exp(lse - full_lse).swapaxes(1, 2)
    np.testing.assert_allclose(recall, weight, **TIGHT)
    # Caches that a sparse step may put back; on the step they were made all give the full output.
    for one in (
        Complement(others, None, others_lse),
        Complement(others - found / 2, None, others_lse, follow=0.5),
        Additive(jnp.asarray(full - listed, jnp.float32)),
    ):
        again = attend(q, k, v, blocks, kv_valid=valid(), cache=one)
        np.testing.assert_allclose(again, full, **TIGHT)


def test_gradients_equal_those_of_the_reference():
    q, k, v = heads()
    blocks = lists(0.4)
    weight = jax.random.normal(jax.random.key(5), q.shape)

    def loss(operands, implementation):
        out, lse = block_sparse_attention(
            *operands, blocks, kv_valid=valid(), return_lse=True, implementation=implementation
        )
        return (out * weight).sum() + jnp.square(jnp.where(lse > EMPTY, lse, 0.0)).sum()

    slope = jax.jit(jax.grad(loss), static_argnums=1)
    slopes, expected = (slope((q, k, v), name) for name in ("xla", "reference"))
    for found, wanted in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=20 * TIGHT["atol"])


def test_bfloat16_in_and_out():
    q, k, v = heads(dtype=jnp.bfloat16)
    out = attend(q, k, v, lists(0.5), kv_valid=valid(), implementation="xla")
    assert out.dtype == jnp.bfloat16
    expected, _ = by_hand(*(x.astype(jnp.float32) for x in (q, k, v)), lists(0.5), valid(), 0.25)
    # Weights are rounded to bfloat16 before they meet the values, and the result once more.
    size = float(np.abs(np.asarray(v, np.float32)).max())
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2 * BFLOAT16_CAST * size)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_some_of_the_queries_are_a_call_of_their_own(implementation):
    q, k, v = heads()
    everything = lists(1.0)
    full = attend(q, k, v, everything, kv_valid=valid(), implementation=implementation)
    dense = np.ones((1, 1, 2, COLUMNS), bool)
    rows = BlockLists.from_block_map(dense, block_q=BLOCK_Q, block_kv=BLOCK_KV)
    last = attend(q[:, -20:], k, v, rows, kv_valid=valid(), implementation=implementation)
    np.testing.assert_allclose(last, full[:, -20:], **TIGHT)


def test_new_lists_do_not_compile_again():
    q, k, v = heads()
    traces = 0

    @jax.jit
    def program(q, k, v, blocks):
        nonlocal traces
        traces += 1
        return block_sparse_attention(q, k, v, blocks)

    for seed in range(3):
        block_map = np.random.default_rng(seed).random((1, 2, ROWS, COLUMNS)) < 0.5
        program(q, k, v, BlockLists.from_block_map(block_map, block_q=16, block_kv=32, longest=3))
    assert traces == 1


def test_operands_that_do_not_go_together():
    q, k, v = heads()
    with pytest.raises(ValueError, match="lists are for 6 x 3 blocks; 50 queries"):
        block_sparse_attention(q[:, :50], k[:, :50], v[:, :50], lists())
    with pytest.raises(ValueError, match="agree in all but q's length"):
        block_sparse_attention(q.astype(jnp.bfloat16), k, v, lists())
    with pytest.raises(ValueError, match="expected 1 or 2 samples and 1 or 2 heads"):
        block_sparse_attention(q, k, v, lists(count=3))
    with pytest.raises(ValueError, match="cached values have shape"):
        block_sparse_attention(q, k, v, lists(), cache=Additive(v[:, 1:]))
    with pytest.raises(ValueError, match="int8 values need a scale"):
        block_sparse_attention(q, k, v, lists(), cache=Additive(v.astype(jnp.int8)))
    with pytest.raises(ValueError, match="the cache's lse"):
        block_sparse_attention(q, k, v, lists(), cache=Complement(v, None, jnp.zeros((2, 2, 3))))
    factors = (jnp.zeros((2, 3, LENGTH)), jnp.zeros((2, 2, 4, 16)))
    with pytest.raises(ValueError, match="low-rank factors"):
        block_sparse_attention(q, k, v, lists(), cache=Additive(v, None, factors))
    facts = {"dtype": jnp.bfloat16, "head_dim": 128, "block_q": 128, "block_kv": 128}
    assert BLOCK_SPARSE_ATTENTION.choose(backend="cpu", **facts) == "xla"
    assert BLOCK_SPARSE_ATTENTION.choose(backend="tpu", **facts) == "tpu"
    assert BLOCK_SPARSE_ATTENTION.choose(backend="tpu", **{**facts, "block_q": 16}) == "xla"
    with pytest.raises(ValueError, match="no target 'v9'; known: v5e"):
        block_sparse_attention(q, k, v, lists(), implementation="tpu@v9")


@pytest.mark.parametrize("queries", [16, 256])
@pytest.mark.parametrize("keys", [4096, 128])
@pytest.mark.parametrize("full", [True, False])
def test_large_and_small_blocks_take_a_full_list_at_once(monkeypatch, full, keys, queries):
    """Or so many keys of it."""
    monkeypatch.setattr(xla, "_KEYS_AT_ONCE", keys)
    q, k, v = heads(length=500)
    q = q[:, : 2 * queries]
    mask = jnp.ones((2, 500), jnp.bool_).at[0, :200].set(False)
    block_map = np.random.default_rng(0).random((2, 2, 2, 8)).argsort(axis=-1) < 3
    block_map[0, 0, 0] = [1, 1, 1, 0, 0, 0, 0, 0]  # keys that are not valid
    if not full:
        block_map[1, 0, 0] = False
        block_map[1, 1, 1, 5:] = False
    blocks = BlockLists.from_block_map(block_map, block_q=queries, block_kv=64, longest=3)

    def anew(name):
        call = partial(block_sparse_attention, return_lse=True, implementation=name)
        return jax.jit(lambda *given: call(*given, blocks, kv_valid=mask))(q, k, v)

    found, expected = anew("xla"), anew("reference")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **TIGHT)


@pytest.mark.parametrize("together", [1, 2, 5])
def test_long_lists_are_masked_some_rows_at_a_time(monkeypatch, together):
    """Five rows, of which the last part may have fewer."""
    monkeypatch.setattr(xla, "_SCORES", together * 16 * 80)
    q, k, v = heads(length=80)
    block_map = np.random.default_rng(0).random((2, 2, 5, 5)) < 0.8
    block_map[:, :, :4, 0] = True
    block_map[1, 1, 3] = False
    blocks = BlockLists.from_block_map(block_map, block_q=16, block_kv=16)
    assert float(blocks.executed_density()) > 0.7

    def anew(name):
        call = partial(block_sparse_attention, return_lse=True, implementation=name)
        return jax.jit(lambda *given: call(*given, blocks))(q, k, v)

    for one, other in zip(anew("xla"), anew("reference"), strict=True):
        np.testing.assert_allclose(one, other, **TIGHT)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_int8_scores_are_near_the_float_ones(implementation):
    """Also where all keys share a large mean, which int8 alone would be spent on."""
    q, k, v = heads(size=64)
    k = k + 20 * jax.random.normal(jax.random.key(1), (1, 1, *k.shape[2:]))
    values = jax.random.normal(jax.random.key(2), q.shape)
    cached = Complement(values, None, jnp.full((2, 2, LENGTH), 60.0))
    for cache in (None, cached):
        (float_out, float_lse), (out, lse) = (
            attend(
                q, k, v, lists(), kv_valid=valid(), cache=cache, scores=scores, return_lse=True,
                implementation=implementation,
            )
            for scores in ("float", "int8")
        )  # fmt: skip
        # 1/254 of a row's largest value a product, over 64 of them in random directions.
        error = jnp.linalg.norm(out - float_out) / jnp.linalg.norm(float_out)
        assert error < 0.02
        seen = np.asarray(float_lse) > EMPTY / 2
        np.testing.assert_allclose(lse[seen], float_lse[seen], atol=0.1)
        assert (np.asarray(lse)[~seen] <= EMPTY / 2).all()


def test_scores_are_float_or_int8():
    q, k, v = heads()
    with pytest.raises(ValueError, match="none of float, int8"):
        block_sparse_attention(q, k, v, lists(), scores="int4")
