"""The real compilers accept the kernels at HunyuanVideo's shapes, with no chip at hand, and unpack or copy nothing large.

The suite compiles every kernel once. Each tile and form for a chip of each kind where it may differ: pytest -m compiled;
all shapes for all chips: pytest -m slow.
"""

from itertools import product

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import (
    Additive,
    BlockLists,
    Complement,
    HeadLayout,
    PackedWeight,
    Projection,
    arranged_heads,
    block_sparse_attention,
    merge_heads,
    quantize_tokens,
    quantized_matmul,
    rotary_heads,
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
SMALL_MATMUL = (256, 512, 256, 4)
# Of every number of bits one, and the largest tiles. A v6e has tiles of its own for one layer, a v5p those of a v5e.
CHOSEN = [*((MATMULS[n], "v5e") for n in (0, 4)), *((MATMULS[n], "v6e") for n in (1, 2, 5))]


def cases(quick, compiled, *everything):
    """Cases as parameters: of the suite, of `-m compiled`, and all others of `-m slow`."""
    others = [case for case in product(*everything) if case not in (*quick, *compiled)]
    marked = [(case, pytest.mark.compiled) for case in compiled]
    marked += [(case, pytest.mark.slow) for case in others]
    return [*quick, *(pytest.param(*case, marks=mark) for case, mark in marked)]


@pytest.mark.parametrize(("shape", "target"), cases([(SMALL_MATMUL, "v5e")], CHOSEN, MATMULS, TPUS))
def test_matmul(shape, target):
    m, k, n, bits = shape

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


# 1,408 channels are eleven slices: one step of the loop and three more.
TOKENS = {
    1408: {"norm": "layer"},
    3072: {"norm": "layer"},
    12288: {"activation": "gelu_tanh", "bits": 6},
}


@pytest.mark.parametrize(
    ("channels", "target"),
    cases([(12288, "v5e")], [(1408, "v5e"), (12288, "v6e"), (3072, "v5p")], TOKENS, TPUS),
)
def test_quantize_tokens(channels, target):
    def program(x, shift, scale, smoothing, rotation):
        return quantize_tokens(
            x, shift=shift, scale=scale, smoothing=smoothing, rotation=rotation,
            implementation=f"tpu@{target}", **TOKENS[channels],
        )  # fmt: skip

    vector = spec(channels)
    compiled = compile_for(
        TARGETS[target], program, spec(25216, channels, dtype=jnp.bfloat16), vector, vector,
        vector, spec(128, 128, dtype=jnp.bfloat16),
    )  # fmt: skip
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20


@pytest.mark.parametrize(
    ("blocks", "target"),
    cases([("double", "v5e")], [("single", "v6e")], ("double", "single"), TPUS),
)
def test_rotary_heads(blocks, target):
    """A double block's text is written behind its video; a single block's layer may have the MLP's channels at its end."""
    lengths, more = {"double": ((24960, 256), 0), "single": ((25216,), 12288)}[blocks]

    def program(projected, scale, cos, sin):
        projections = [Projection(part, scale, scale) for part in projected]
        return rotary_heads(projections, cos, sin, heads=24, implementation=f"tpu@{target}")

    projected = [spec(1, length, 9216 + more, dtype=jnp.bfloat16) for length in lengths]
    scale, table = spec(128, dtype=jnp.bfloat16), spec(24960, 128)
    compiled = compile_for(TARGETS[target], program, projected, scale, table, table)
    # The text's own rows, not the video's.
    assert compiled.memory_analysis().temp_size_in_bytes < 2**24


# Of 61 and of 129 frames: rows of a sparse step, whose heads choose between two orders of tokens.
VIDEOS = {61: (16, 24960, 25088, 24960, 25216), 129: (33, 118800, 119296, 118912, 119168)}


@pytest.mark.parametrize(("frames", "target"), cases([(129, "v6e")], [(61, "v5e")], VIDEOS, TPUS))
def test_heads_in_the_rows_of_lists_and_back(frames, target):
    """Nothing is padded, cut or permuted: besides results there are only the text's rows and the tables in both orders."""
    latents, video, queries, text, keys = VIDEOS[frames]
    layout = HeadLayout(queries, keys, text, apart=True, frames=latents)

    def program(projected, scale, cos, sin, second):
        projections = [Projection(projected, scale, scale)]
        options = {"implementation": f"tpu@{target}"}
        heads = arranged_heads(projections, cos, sin, layout, second, heads=24, **options)
        back = merge_heads(
            heads.q, heads.text, second, lengths=(video + 256,), frames=latents, **options
        )
        return heads.k, heads.v, back

    scale, table = spec(128, dtype=jnp.bfloat16), spec(video, 128)
    projected, second = spec(1, video + 256, 9216, dtype=jnp.bfloat16), spec(1, 24, dtype=jnp.bool_)
    compiled = compile_for(TARGETS[target], program, projected, scale, table, table, second)
    queries_only = 2 * 24 * queries * 128
    tables = 4 * 4 * video * 128
    assert compiled.memory_analysis().temp_size_in_bytes < queries_only + tables + 2**24


def int8_values(length):
    return spec(1, length, 24, 128, dtype=jnp.int8), spec(1, 24, length)


def low_rank(length):
    return spec(1, 16, length, dtype=jnp.bfloat16), spec(1, 24, 16, 128, dtype=jnp.bfloat16)


def complement(length):
    values = spec(1, length, 24, 128, dtype=jnp.bfloat16)
    return Complement(values, None, spec(1, 24, length), low_rank(length), follow=0.5)


# Tokens, block of queries, block of keys, length of the lists (None: of all), cache, scores; and what is allocated besides
# operands and result: copies of them, transposed and padded to whole blocks, in units of one of them. The number is the
# compiler's version's; a map of scores would be 200, a vector padded from one lane to 128 another one or two.
ATTENTION = {
    "plain": ((25216, 512, 512, None, None, "float"), 6.2),
    "fine": ((25216, 128, 128, 40, Additive(*int8_values(25216), low_rank(25216)), "float"), 4.7),
    "int8": ((25216, 512, 512, None, None, "int8"), 6.2),
    "720p": ((119056, 512, 128, 144, complement(119056), "float"), 7.5),
    "small": ((1024, 128, 128, 4, complement(1024), "float"), 1.0),
}


@pytest.mark.parametrize(
    ("name", "target"),
    # A v5e's fine lists are in the whole steps of tests/budget.
    cases([("small", "v5e")], [("int8", "v5e"), ("fine", "v6e"), ("720p", "v6e")], ATTENTION, TPUS),
)
def test_attention(name, target):
    (length, block_q, block_kv, longest, cache, scores), copies = ATTENTION[name]
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
            q, k, v, blocks, kv_valid=valid, cache=cache, scores=scores, return_lse=True, clears=False,
            implementation=f"tpu@{target}",
        )  # fmt: skip

    valid = spec(1, length, dtype=jnp.bool_)
    compiled = compile_for(TARGETS[target], program, x, x, x, valid, lists, cache)
    assert compiled.memory_analysis().temp_size_in_bytes < copies * length * heads * 128 * 2
