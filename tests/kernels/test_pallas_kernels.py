"""The Pallas kernels' numbers, interpreted; those of the TPU where memory starts as NaN and races are found."""

from functools import cache as remember

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FLOAT32_EPILOGUE, float32_sum

from pallas_kernels import (
    Additive,
    BlockLists,
    Complement,
    attention_with_residual,
    block_sparse_attention,
    pack,
    quantized_matmul,
)
from pallas_kernels.block_sparse_attention import gpu as attention_gpu
from pallas_kernels.block_sparse_attention import tpu as attention_tpu
from pallas_kernels.block_sparse_attention.softmax import lengths, score_bound
from pallas_kernels.quantized_matmul import gpu as matmul_gpu
from pallas_kernels.quantized_matmul import tpu as matmul_tpu
from pallas_kernels.quantized_matmul.gpu_tiles import GpuTiles
from pallas_kernels.quantized_matmul.operands import MatmulOperands
from pallas_kernels.quantized_matmul.tiles import TABLE, Tiles, tpu_bytes, tpu_tiles
from pallas_kernels.targets import TARGETS

_attend = jax.jit(
    block_sparse_attention, static_argnames=("return_lse", "scores", "implementation")
)
refresh = jax.jit(attention_with_residual, static_argnames="implementation")

INTERPRET = TARGETS["interpret"]
BOTH = pytest.mark.parametrize("kernel", ["tpu", "gpu"])
LAYOUT = {"tpu": "bytes", "gpu": "bytes_transposed"}
LENGTH, HEADS, SIZE = 300, 2, 128


def attend(q, k, v, blocks, *, kv_valid, implementation, cache=None, scores="float"):
    """Output and log-sum-exp. A kernel and the shapes of its operands are compiled once; lists, masks and values are data.

    All calls name the same arguments: one that is left out is another program to `jax.jit` than one that is given.
    """
    return _attend(
        q, k, v, blocks, kv_valid=kv_valid, cache=cache, scores=scores, return_lse=True,
        implementation=implementation,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_races(capfd):
    """The interpreter only prints what it has found."""
    yield
    assert "RACE DETECTED" not in capfd.readouterr().out


def matmul_operands(m, k, n, bits, groups, layout="bytes"):
    random = np.random.default_rng(0)
    limit = 2 ** (bits - 1)
    floats = {"bias": (n,), "residual": (m, n), "gate": (groups, n)}
    return {
        "x": jnp.asarray(random.integers(-128, 128, (m, k), np.int8)),
        "x_scale": jnp.asarray(random.uniform(0.5, 2, m), jnp.float32),
        "weight": pack(random.integers(-limit, limit, (k, n), np.int8), bits=bits, layout=layout),
        "w_scale": jnp.asarray(random.uniform(0.001, 0.002, n), jnp.float32),
        **{name: jnp.asarray(random.normal(size=s), jnp.float32) for name, s in floats.items()},
    }


@remember
def everything_fused(m, k, n, bits, groups, layout, implementation):
    """The same numbers in every layout, so that one reference is for all kernels."""
    operands = matmul_operands(m, k, n, bits, groups, layout)

    @jax.jit
    def multiply(operands):
        return quantized_matmul(
            **operands, activation="gelu_tanh", out_dtype=jnp.float32, implementation=implementation
        )

    return multiply(operands)


@BOTH
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(("m", "k", "n", "groups"), [(40, 512, 200, 1), (96, 1024, 130, 3)])
def test_matmul(kernel, bits, m, k, n, groups):
    found = everything_fused(m, k, n, bits, groups, LAYOUT[kernel], f"{kernel}@interpret")
    expected = everything_fused(m, k, n, bits, groups, "bytes", "reference")
    atol = 10 * FLOAT32_EPILOGUE * float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=atol)


@BOTH
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_matmul_sums_over_steps_exactly(kernel, bits):
    x = matmul_operands(40, 1024, 200, bits, 1)["x"]
    random = np.random.default_rng(1)
    values = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (1024, 200), np.int8)
    module, tiles = {
        "tpu": (matmul_tpu, Tiles(32, 128, 128)),
        "gpu": (matmul_gpu, GpuTiles(16, 64, 32, 4, 2)),
    }[kernel]
    weight = pack(values, bits=bits, layout=LAYOUT[kernel])
    found = module.quantized_matmul(
        MatmulOperands(x, jnp.ones(40), weight, jnp.ones(200)),
        activation="none", out_dtype=jnp.dtype(jnp.float32), target=INTERPRET, tiles=tiles,
    )  # fmt: skip
    np.testing.assert_array_equal(found, np.asarray(x, np.int64) @ values.astype(np.int64))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("rows", [1, 40])
def test_matmul_of_floats_with_integer_weights(bits, rows):
    operands = matmul_operands(rows, 256, 130, bits, 1, "bytes_transposed")
    x = jax.random.normal(jax.random.key(0), (rows, 256))
    found, expected = (
        quantized_matmul(
            x, None, operands["weight"], operands["w_scale"], operands["bias"],
            out_dtype=jnp.float32, implementation=name,
        )
        for name in ("gpu@interpret", "reference")
    )  # fmt: skip
    atol = 4 * float32_sum(256) * float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize(("k", "n"), [(3072, 9216), (3072, 21504), (12288, 3072), (15360, 3072)])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_tiles_divide_k_and_fit(k, n, bits):
    parts = {4: 2, 6: 4, 8: 1}[bits]
    for m in (1, 100, 25216):
        tiles = tpu_tiles(m, n, k // parts, parts)
        assert (k // parts) % tiles.k == 0
        assert tiles.k % 128 == tiles.n % 128 == tiles.m % 32 == 0
        assert tpu_bytes(tiles, parts) <= 56 * 2**20


@pytest.mark.parametrize("known", TABLE)
def test_tiles_in_the_table_belong_to_their_layers(known):
    target, parts, panel, n = known
    tiles = TABLE[known]
    assert TARGETS[target].backend == "tpu"
    assert panel % tiles.k == n % tiles.n == tiles.k % 128 == tiles.n % 128 == tiles.m % 32 == 0
    assert tpu_tiles(tiles.m, n, panel, parts, target) == tiles
    assert tpu_tiles(tiles.m - 1, n, panel, parts, target) != tiles


def attention_operands(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, LENGTH, HEADS, SIZE)).astype(dtype) for key in keys)
    mask = np.ones((2, LENGTH), bool)
    mask[0, 130:140] = mask[1, -20:] = False
    return q, k, v, jnp.asarray(mask)


def lists(density=0.5, *, samples=2, heads=HEADS, seed=0):
    block_map = np.random.default_rng(seed).random((samples, heads, 3, 3)) < density
    block_map[0, 0, 1] = False  # an empty list
    return BlockLists.from_block_map(block_map, block_q=128, block_kv=128, longest=3)


def cache(kind, rank):
    random = np.random.default_rng(1)
    shape = (2, LENGTH, HEADS, SIZE)
    low_rank = None
    if rank:
        u, v = random.normal(size=(2, rank, LENGTH)), random.normal(size=(2, HEADS, rank, SIZE))
        low_rank = (jnp.asarray(u, jnp.float32), jnp.asarray(v, jnp.float32))
    rows = (2, HEADS, LENGTH)
    if kind.endswith("int8"):
        values = jnp.asarray(random.integers(-127, 128, shape, np.int8))
        scale = jnp.asarray(random.uniform(0, 0.02, rows), jnp.float32)
    else:
        values, scale = jnp.asarray(random.normal(size=shape), jnp.float32), None
    if kind.startswith("additive"):
        return Additive(values, scale, low_rank)
    lse = jnp.asarray(random.normal(size=rows), jnp.float32)
    return Complement(values, scale, lse, low_rank, 0.5 if kind.startswith("following") else 0.0)


TIGHT = {"atol": 16 * float32_sum(LENGTH), "rtol": 8 * float32_sum(LENGTH)}


@BOTH
def test_attention(kernel):
    """By lists of every sample and head; those that some or all share: the tests of caches and of some of the queries."""
    q, k, v, valid = attention_operands()
    for density in (0.0, 0.3, 1.0):
        blocks = lists(density)
        found, expected = (
            attend(q, k, v, blocks, kv_valid=valid, implementation=name)
            for name in (f"{kernel}@interpret", "reference")
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, **TIGHT)


@pytest.mark.parametrize("scores", ["float", "int8"])
def test_attention_with_and_without_a_bound_of_the_scores(scores):
    """Weights are relative to the bound in the first head, to running maxima in the second, in one program."""
    q, k, v, valid = attention_operands()
    q = q * jnp.array([1.0, 8.0])[None, None, :, None]
    bound, bounded = score_bound(*(lengths(x.swapaxes(1, 2)) for x in (q, k)), SIZE**-0.5)
    np.testing.assert_array_equal(bounded, [[True, False]] * 2)
    products = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    assert (products.max(axis=-1) < bound).all()
    found, expected = (
        attend(q, k, v, lists(0.7), kv_valid=valid, scores=scores, implementation=name)
        for name in ("tpu@interpret", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=8 * TIGHT["atol"], rtol=TIGHT["rtol"])


@BOTH
@pytest.mark.parametrize(
    ("kind", "rank", "samples", "heads"),
    [
        ("additive", 16, 1, HEADS),
        ("additive_int8", 0, 2, 1),
        ("complement", 0, 2, HEADS),
        ("following_int8", 16, 2, HEADS),
    ],
)
def test_attention_applies_the_cache(kernel, kind, rank, samples, heads):
    """Both stores with and without factors, and every kind; a complement with factors is in the test of int8 scores.

    In the first two cases samples or heads share their lists.
    """
    q, k, v, valid = attention_operands()
    blocks, kept = lists(samples=samples, heads=heads), cache(kind, rank)
    found, expected = (
        attend(q, k, v, blocks, kv_valid=valid, cache=kept, implementation=name)
        for name in (f"{kernel}@interpret", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **TIGHT)


@BOTH
@pytest.mark.parametrize("kind", [None, "complement_int8"])
def test_attention_with_int8_scores(kernel, kind):
    q, k, v, valid = attention_operands()
    found, expected = (
        attend(
            q, k + 3.0, v, lists(), kv_valid=valid, cache=kind and cache(kind, 16), scores="int8",
            implementation=name,
        )
        for name in (f"{kernel}@interpret", "reference")
    )  # fmt: skip
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **TIGHT)


@BOTH
def test_attention_of_some_of_the_queries(kernel):
    """By lists of all samples and heads."""
    q, k, v, valid = attention_operands()
    for listed in ([[1, 1, 1], [1, 1, 1]], [[0, 1, 0], [1, 0, 1]]):
        block_map = np.array(listed, bool)[None, None]
        rows = BlockLists.from_block_map(block_map, block_q=128, block_kv=128, longest=3)
        found, expected = (
            attend(q[:, -140:], k, v, rows, kv_valid=valid, implementation=name)
            for name in (f"{kernel}@interpret", "reference")
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, **TIGHT)


@BOTH
def test_attention_refresh(kernel):
    q, k, v, valid = attention_operands()
    found, expected = (
        refresh(q, k, v, lists(), kv_valid=valid, implementation=name)
        for name in (f"{kernel}@interpret", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **TIGHT)


@pytest.mark.parametrize("gather", [1, 2, 3])
def test_executed_blocks_are_the_listed_ones(gather):
    q, k, v, valid = attention_operands()
    blocks = lists(0.4)
    arranged = attention_tpu.arrange(q, k, v, valid, blocks, None, gather=gather, scale=1.0)
    _, _, executed = attention_tpu.launch(
        arranged, blocks, gather=gather, scale=1.0, target=INTERPRET, count_blocks=True
    )
    np.testing.assert_array_equal(executed[..., 0, 0], blocks.counts)


@pytest.mark.parametrize(("block_q", "block_kv"), [(16, 32), (64, 16), (256, 128), (128, 384)])
def test_the_gpu_kernel_walks_blocks_of_any_size(block_q, block_kv):
    q, k, v, valid = attention_operands()
    random = np.random.default_rng(0)
    block_map = random.random((2, HEADS, -(-LENGTH // block_q), -(-LENGTH // block_kv))) < 0.5
    blocks = BlockLists.from_block_map(block_map, block_q=block_q, block_kv=block_kv)
    out, _, executed = attention_gpu.launch(
        q, k, v, valid, blocks, None, scale=SIZE**-0.5, target=INTERPRET, count_blocks=True
    )
    expected = block_sparse_attention(q, k, v, blocks, kv_valid=valid, implementation="reference")
    np.testing.assert_allclose(out, expected, **TIGHT)
    tile_q, tile_kv = min(block_q, 128), min(block_kv, 128)
    listed = np.repeat(blocks.counts, block_q // tile_q, axis=2)[..., : executed.shape[2]]
    np.testing.assert_array_equal(executed, listed * (block_kv // tile_kv))


@BOTH
@settings(max_examples=6)
@given(
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    loud=st.sampled_from([1e-3, 1.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_attention_over_any_lists(kernel, density, loud, seed):
    q, k, v, valid = attention_operands()
    (found, _), (expected, _) = (
        attend(loud * q, k, v, lists(density, seed=seed), kv_valid=valid, implementation=name)
        for name in (f"{kernel}@interpret", "reference")
    )
    # Scores of size `loud` have rounding errors of that size, which the softmax passes on.
    np.testing.assert_allclose(found, expected, atol=TIGHT["atol"] * max(1, loud))


@BOTH
@pytest.mark.parametrize(("m", "n", "bits"), [(1, 129, 4), (33, 200, 6), (70, 1, 8), (32, 128, 4)])
def test_matmul_of_any_size(kernel, m, n, bits):
    """One row or column, whole tiles, and one more than those."""
    random = np.random.default_rng(m)
    values = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (512, n), np.int8)
    x = random.integers(-128, 128, (m, 512), np.int8)
    found = quantized_matmul(
        jnp.asarray(x), jnp.ones(m), pack(values, bits=bits, layout=LAYOUT[kernel]), jnp.ones(n),
        out_dtype=jnp.float32, implementation=f"{kernel}@interpret",
    )  # fmt: skip
    np.testing.assert_array_equal(found, x.astype(np.int64) @ values.astype(np.int64))
