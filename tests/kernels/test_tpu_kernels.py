"""The TPU kernels' numbers, in the interpreter that starts memory as NaN, bounds reads and finds races."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
from pallas_kernels.block_sparse_attention import tpu as attention_tpu
from pallas_kernels.quantized_matmul import tpu as matmul_tpu
from pallas_kernels.quantized_matmul.tiles import Tiles, tpu_bytes, tpu_tiles
from pallas_kernels.targets import TARGETS

INTERPRET = TARGETS["interpret"]
LENGTH, HEADS, SIZE = 300, 2, 128


def matmul_operands(m, k, n, bits, groups):
    random = np.random.default_rng(0)
    limit = 2 ** (bits - 1)
    floats = {"bias": (n,), "residual": (m, n), "gate": (groups, n)}
    return {
        "x": jnp.asarray(random.integers(-128, 128, (m, k), np.int8)),
        "x_scale": jnp.asarray(random.uniform(0.5, 2, m), jnp.float32),
        "weight": pack(random.integers(-limit, limit, (k, n), np.int8), bits=bits),
        "w_scale": jnp.asarray(random.uniform(0.001, 0.002, n), jnp.float32),
        **{name: jnp.asarray(random.normal(size=s), jnp.float32) for name, s in floats.items()},
    }


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(("m", "k", "n", "groups"), [(40, 512, 200, 1), (96, 1024, 130, 3)])
def test_matmul(bits, m, k, n, groups):
    given = {**matmul_operands(m, k, n, bits, groups), "activation": "gelu_tanh"}
    found, expected = (
        quantized_matmul(**given, out_dtype=jnp.float32, implementation=name)
        for name in ("tpu@interpret", "reference")
    )
    atol = 10 * FLOAT32_EPILOGUE * float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_matmul_sums_over_steps_exactly(bits):
    given = matmul_operands(40, 1024, 200, bits, 1)
    exact = np.asarray(given["x"], np.int64)
    random = np.random.default_rng(1)
    values = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (1024, 200), np.int8)
    found = matmul_tpu.quantized_matmul(
        given["x"], jnp.ones(40), pack(values, bits=bits), jnp.ones(200), None, None, None,
        activation="none", out_dtype=jnp.dtype(jnp.float32), target=INTERPRET,
        tiles=Tiles(32, 128, 128),
    )  # fmt: skip
    np.testing.assert_array_equal(found, exact @ values.astype(np.int64))


@pytest.mark.parametrize(("k", "n"), [(3072, 9216), (3072, 21504), (12288, 3072), (15360, 3072)])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_tiles_divide_k_and_fit(k, n, bits):
    parts = {4: 2, 6: 4, 8: 1}[bits]
    for m in (1, 100, 25216):
        tiles = tpu_tiles(m, n, k // parts, parts)
        assert (k // parts) % tiles.k == 0
        assert tiles.k % 128 == tiles.n % 128 == tiles.m % 32 == 0
        assert tpu_bytes(tiles, parts) <= 56 * 2**20


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
    return Complement(values, scale, jnp.asarray(random.normal(size=rows), jnp.float32), low_rank)


TIGHT = {"atol": 16 * float32_sum(LENGTH), "rtol": 8 * float32_sum(LENGTH)}


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_attention(samples, heads, density):
    q, k, v, valid = attention_operands()
    blocks = lists(density, samples=samples, heads=heads)
    found, expected = (
        block_sparse_attention(
            q, k, v, blocks, kv_valid=valid, return_lse=True, implementation=name
        )
        for name in ("tpu@interpret", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **TIGHT)


@pytest.mark.parametrize("kind", ["additive", "additive_int8", "complement", "complement_int8"])
@pytest.mark.parametrize("rank", [0, 16])
def test_attention_applies_the_cache(kind, rank):
    q, k, v, valid = attention_operands()
    found, expected = (
        block_sparse_attention(
            q, k, v, lists(), kv_valid=valid, cache=cache(kind, rank), implementation=name
        )
        for name in ("tpu@interpret", "reference")
    )
    np.testing.assert_allclose(found, expected, **TIGHT)


def test_attention_of_some_of_the_queries():
    q, k, v, valid = attention_operands()
    rows = BlockLists.from_block_map(np.ones((1, 1, 1, 3), bool), block_q=128, block_kv=128)
    found, expected = (
        block_sparse_attention(q[:, -40:], k, v, rows, kv_valid=valid, implementation=name)
        for name in ("tpu@interpret", "reference")
    )
    np.testing.assert_allclose(found, expected, **TIGHT)


def test_attention_refresh():
    q, k, v, valid = attention_operands()
    found, expected = (
        attention_with_residual(q, k, v, lists(), kv_valid=valid, implementation=name)
        for name in ("tpu@interpret", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **TIGHT)


@pytest.mark.parametrize("gather", [1, 2, 3])
def test_executed_blocks_are_the_listed_ones(gather):
    q, k, v, valid = attention_operands()
    blocks = lists(0.4)
    arranged = attention_tpu.arrange(q, k, v, valid, blocks, None, gather=gather)
    _, _, executed = attention_tpu.launch(
        arranged, blocks, gather=gather, scale=1.0, target=INTERPRET, count_blocks=True
    )
    np.testing.assert_array_equal(executed[..., 0, 0], blocks.counts)
