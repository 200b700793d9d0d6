"""The CUDA toolchain accepts the GPU kernels at HunyuanVideo's shapes, on tensor cores and without spilling registers.

No GPU is needed, only `pip install '.[cuda]'`.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from h100_code import H100, SHARED_MEMORY, compiled, triton_compiled

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

pytestmark = [
    pytest.mark.skipif(missing(H100) is not None, reason="the CUDA extra is not installed"),
    pytest.mark.usefixtures("optimized"),
]
INT8, BFLOAT16 = "s32.s8.s8", "f32.bf16.bf16"


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def weight(k, n, bits):
    rows = {4: (k // 2,), 6: (k // 2, k // 4), 8: (k,)}[bits]
    planes = tuple(spec(n, r, dtype=jnp.int8) for r in rows)
    return PackedWeight(planes, bits, "bytes_transposed", k)


def check(code, instruction):
    assert code.spilled == 0
    assert code.shared_memory <= SHARED_MEMORY
    assert code.tensor_cores
    assert all(instruction in name for name in code.tensor_cores)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(
    ("k", "n"),
    [(3072, 9216), (3072, 12288), (3072, 21504), (12288, 3072), (3072, 3072), (15360, 3072)],
)
@pytest.mark.parametrize("m", [25216, 119056])
def test_matmul(tmp_path, m, k, n, bits):
    def program(x, x_scale, w, w_scale, bias, residual, gate):
        return quantized_matmul(
            x, x_scale, w, w_scale, bias, activation="gelu_tanh", residual=residual, gate=gate,
            implementation="gpu@h100",
        )  # fmt: skip

    code = compiled(
        tmp_path, "quantized_matmul", program, spec(m, k, dtype=jnp.int8), spec(m),
        weight(k, n, bits), spec(n), spec(n), spec(m, n, dtype=jnp.bfloat16), spec(1, n),
    )  # fmt: skip
    check(code, INT8)
    assert all("wgmma" in name for name in code.tensor_cores)
    # Nothing is unpacked in the main memory.
    assert code.temporary < 2**20


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("m", [1, 64])
def test_weights_alone(tmp_path, m, bits):
    def program(x, w, w_scale, bias):
        return quantized_matmul(x, None, w, w_scale, bias, implementation="gpu@h100")

    code = compiled(
        tmp_path, "quantized_matmul", program, spec(m, 3072, dtype=jnp.bfloat16),
        weight(3072, 18432, bits), spec(18432), spec(18432),
    )  # fmt: skip
    check(code, BFLOAT16)
    assert code.temporary < 2**20


@pytest.mark.parametrize("rotated", [128, 256])
@pytest.mark.parametrize(("channels", "settings"), [
    (3072, {"norm": "layer"}), (12288, {"activation": "gelu_tanh", "bits": 6}),
])  # fmt: skip
def test_quantize_tokens(tmp_path, channels, settings, rotated):
    def program(x, shift, scale, smoothing, rotation):
        return quantize_tokens(
            x, shift=shift, scale=scale, smoothing=smoothing, rotation=rotation,
            implementation="gpu@h100", **settings,
        )  # fmt: skip

    vector = spec(channels)
    code = compiled(
        tmp_path, "quantize_tokens", program, spec(25216, channels, dtype=jnp.bfloat16), vector,
        vector, vector, spec(rotated, rotated, dtype=jnp.bfloat16),
    )  # fmt: skip
    check(code, BFLOAT16)
    assert code.temporary < 2**20


@pytest.mark.parametrize(("kind", "scores"), [
    (None, "float"), (Additive, "float"), (Complement, "float"), (None, "int8"), (Complement, "int8"),
])  # fmt: skip
@pytest.mark.parametrize(
    ("length", "block_q", "block_kv"),
    [(25216, 128, 128), (25216, 64, 64), (119056, 128, 128), (119056, 512, 1024)],
)
def test_attention(tmp_path, length, block_q, block_kv, kind, scores):
    heads, rows, columns = 24, -(-length // block_q), -(-length // block_kv)
    x = spec(1, length, heads, 128, dtype=jnp.bfloat16)
    lists = BlockLists(
        spec(1, heads, rows, columns // 6, dtype=jnp.int32),
        spec(1, heads, rows, dtype=jnp.int32),
        block_q,
        block_kv,
        columns,
    )
    cache, row = None, spec(1, heads, length)
    if kind is not None:
        factors = (
            spec(1, 16, length, dtype=jnp.bfloat16),
            spec(1, heads, 16, 128, dtype=jnp.bfloat16),
        )
        values = spec(1, heads, length, 128, dtype=jnp.int8)
        cache = Additive(values, row, factors)
        if kind is Complement:
            cache = Complement(values, row, row, factors, follow=0.5)

    def program(q, k, v, valid, blocks, cache):
        if cache is not None:  # at rest head by head, as `qsjax.residual` keeps it
            cache = replace(cache, values=cache.values.swapaxes(1, 2))
        return block_sparse_attention(
            q, k, v, blocks, kv_valid=valid, cache=cache, scores=scores, return_lse=True, clears=False,
            implementation="gpu@h100",
        )  # fmt: skip

    code = compiled(
        tmp_path, "block_sparse_attention", program, x, x, x, spec(1, length, dtype=jnp.bool_),
        lists, cache,
    )  # fmt: skip
    if scores == "float":
        check(code, BFLOAT16)
        # Neither a transposed nor a padded copy of any operand.
        assert code.temporary < 2**20
    else:
        check(code, "")
        assert any(INT8 in name for name in code.tensor_cores)


@pytest.mark.parametrize(("k", "n"), [(3072, 12288), (3072, 21504), (12288, 3072)])
@pytest.mark.parametrize("m", [25216, 119056])
def test_matmul_of_jax_triton(m, k, n):
    """Its bytes are unpacked four at a time: without permutations of bytes, which Triton's own shifts need."""
    from pallas_kernels.quantized_matmul.gpu_tiles import ROWS_TOGETHER, gpu_tiles
    from pallas_kernels.quantized_matmul.triton_kernel import matmul

    tiles = gpu_tiles(m, k // 2, 4, narrow=True)
    pointers = {
        "x": "*i8", "w": "*i8", "w_scale": "*fp32", "x_scale": "*fp32", "bias": "*fp32",
        "gate": "*fp32", "residual": "*bf16", "out": "*bf16",
    }  # fmt: skip
    constants = {
        "M": m, "N": n, "PANEL": k // 2, "TILE_M": tiles.m, "TILE_N": tiles.n, "TILE_K": tiles.k,
        "ROWS_TOGETHER": ROWS_TOGETHER, "BIAS": True, "GELU": True, "GATE": True, "RESIDUAL": True,
    }  # fmt: skip
    code = triton_compiled(matmul, pointers, constants, warps=tiles.warps, stages=tiles.stages)
    check(code, INT8)
    assert code.permutations == 0


def test_jax_triton_is_called_from_a_program():
    def program(x, x_scale, w, w_scale, bias, residual, gate):
        return quantized_matmul(
            x, x_scale, w, w_scale, bias, residual=residual, gate=gate,
            implementation="jax_triton@h100",
        )  # fmt: skip

    m, k, n = 4096, 3072, 3072
    compiled_program = compile_for(
        H100, program, spec(m, k, dtype=jnp.int8), spec(m), weight(k, n, 4), spec(n), spec(n),
        spec(m, n, dtype=jnp.bfloat16), spec(2, n),
    )  # fmt: skip
    assert "triton_kernel_call" in compiled_program.as_text()
    assert compiled_program.memory_analysis().temp_size_in_bytes < 2**20
