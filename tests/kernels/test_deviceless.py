"""The real compilers accept the kernels at HunyuanVideo's shapes, with no chip at hand."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import (
    Additive,
    BlockLists,
    Complement,
    PackedWeight,
    block_sparse_attention,
    quantize_tokens,
    quantized_matmul,
)
from pallas_kernels.deviceless import compile_for, missing
from pallas_kernels.targets import TARGETS

TPUS = ["v5e", "v6e", "v5p"]
pytestmark = [
    pytest.mark.skipif(missing(TARGETS["v5e"]) is not None, reason="libtpu is not installed"),
    pytest.mark.usefixtures("optimized"),
]


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def weight(k, n, bits):
    rows = {4: (k // 2,), 6: (k // 2, k // 4), 8: (k,)}[bits]
    return PackedWeight(tuple(spec(r, n, dtype=jnp.int8) for r in rows), bits, "bytes", k)


MATMULS = [
    (25216, 3072, 9216, 4), (25216, 3072, 12288, 4), (25216, 3072, 21504, 6),
    (25216, 12288, 3072, 4), (25216, 3072, 3072, 8), (25216, 15360, 3072, 4),
    (119056, 3072, 21504, 4), (119056, 12288, 3072, 6),
]  # fmt: skip
# A v5p has the v5e's tiles: one shape of each width says enough.
OF_V5P = [MATMULS[n] for n in (0, 4, 7)]


@pytest.mark.parametrize(
    ("m", "k", "n", "bits", "target"),
    [(*shape, "v5e") for shape in MATMULS]
    + [(*shape, "v6e") for shape in MATMULS]
    + [(*shape, "v5p") for shape in OF_V5P],
)
def test_matmul(m, k, n, bits, target):
    def program(x, x_scale, w, w_scale, bias, residual, gate):
        return quantized_matmul(
            x, x_scale, w, w_scale, bias, residual=residual, gate=gate,
            implementation=f"tpu@{target}",
        )  # fmt: skip

    compiled = compile_for(
        TARGETS[target], program, spec(m, k, dtype=jnp.int8), spec(m), weight(k, n, bits),
        spec(n), spec(n), spec(m, n, dtype=jnp.bfloat16), spec(1, n),
    )  # fmt: skip
    # Nothing is unpacked in HBM.
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20


@pytest.mark.parametrize("target", TPUS)
@pytest.mark.parametrize(("channels", "settings"), [
    (3072, {"norm": "layer"}), (12288, {"activation": "gelu_tanh", "bits": 6}),
])  # fmt: skip
def test_quantize_tokens(target, channels, settings):
    def program(x, shift, scale, smoothing, rotation):
        return quantize_tokens(
            x, shift=shift, scale=scale, smoothing=smoothing, rotation=rotation,
            implementation=f"tpu@{target}", **settings,
        )  # fmt: skip

    vector = spec(channels)
    compiled = compile_for(
        TARGETS[target], program, spec(25216, channels, dtype=jnp.bfloat16), vector, vector,
        vector, spec(128, 128, dtype=jnp.bfloat16),
    )  # fmt: skip
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20


def attention(target, length, block_q, block_kv, longest, cache=None, scores="float"):
    heads, rows, columns = 24, -(-length // block_q), -(-length // block_kv)
    x = spec(1, length, heads, 128, dtype=jnp.bfloat16)
    lists = BlockLists(
        spec(1, heads, rows, longest or columns, dtype=jnp.int32),
        spec(1, heads, rows, dtype=jnp.int32),
        block_q,
        block_kv,
        columns,
    )

    def program(q, k, v, valid, blocks, cache):
        return block_sparse_attention(
            q, k, v, blocks, kv_valid=valid, cache=cache, scores=scores, return_lse=True,
            implementation=f"tpu@{target}",
        )  # fmt: skip

    valid = spec(1, length, dtype=jnp.bool_)
    return compile_for(TARGETS[target], program, x, x, x, valid, lists, cache)


def low_rank(length):
    return spec(1, 16, length, dtype=jnp.bfloat16), spec(1, 24, 16, 128, dtype=jnp.bfloat16)


@pytest.mark.parametrize("target", TPUS)
def test_attention(target):
    attention(target, 25216, 512, 512, None)


@pytest.mark.parametrize("target", TPUS)
def test_attention_over_fine_lists_with_an_int8_cache(target):
    values = spec(1, 25216, 24, 128, dtype=jnp.int8), spec(1, 24, 25216)
    attention(target, 25216, 128, 128, 40, Additive(*values, low_rank(25216)))


@pytest.mark.parametrize("target", TPUS)
def test_attention_with_int8_scores(target):
    attention(target, 25216, 512, 512, None, scores="int8")


@pytest.mark.parametrize("target", ["v5e", "v6e"])
def test_attention_at_720p_with_a_complement(target):
    values = spec(1, 119056, 24, 128, dtype=jnp.bfloat16)
    cache = Complement(values, None, spec(1, 24, 119056), low_rank(119056), follow=0.5)
    compiled = attention(target, 119056, 512, 512, 36, cache)
    # Copies of the operands and the result, transposed and padded to whole blocks: six or seven, as the compiler's
    # version has it. A vector padded from one lane to 128 would be two more.
    assert compiled.memory_analysis().temp_size_in_bytes < 7.5 * 119056 * 24 * 128 * 2
