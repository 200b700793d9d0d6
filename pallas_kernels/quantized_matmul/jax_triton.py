"""Triton without Pallas, for 4 bits: tiles like those of `gpu.py`, and weights unpacked by instructions of our own.

It does not depend on Pallas' Triton backend, which jax is going to drop. It has no interpreter: a machine without a GPU can
only compile it.
"""

import importlib.util

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.activations import Activation
from pallas_kernels.quantized_matmul.gpu_tiles import ROWS_TOGETHER, GpuTiles, gpu_tiles
from pallas_kernels.quantized_matmul.operands import MatmulOperands
from pallas_kernels.quantized_matmul.packing import FACTOR, WeightLayout
from pallas_kernels.targets import Target


def objection(
    *, backend: str, layout: WeightLayout, bits: int, rows: int, weight_only: bool, **_: object
) -> str | None:
    """Why the kernel cannot serve a call."""
    if backend != "gpu":
        return f"needs a GPU, this is {backend}"
    if importlib.util.find_spec("jax_triton") is None:
        return "needs jax-triton: pip install jax-triton"
    if bits != 4 or layout != "bytes_transposed":
        return f"needs 4 bits in layout 'bytes_transposed', not {bits} in {layout!r}"
    if weight_only:
        return "is for int8 activations"
    return f"K = {rows} is not a multiple of 64" if rows % 64 else None


def quantized_matmul(
    operands: MatmulOperands,
    *,
    activation: Activation,
    out_dtype: jnp.dtype,
    target: Target,
    tiles: GpuTiles | None = None,
) -> Float[Array, "M N"]:
    """See `api.quantized_matmul`, and `gpu.quantized_matmul` for the arguments."""
    import jax_triton

    from pallas_kernels.quantized_matmul.triton_kernel import matmul

    (rows, k, n), groups = operands.sizes, operands.groups
    m, panel = rows // groups, k // 2
    tiles = tiles or gpu_tiles(m, panel, 4, narrow=True)
    (packed,) = operands.weight.planes
    # The kernel takes an array for each of these, and reads it only if it is there.
    bias, gate, residual = (
        operands.w_scale if array is None else array
        for array in (operands.bias, operands.gate, operands.residual)
    )
    return jax_triton.triton_call(
        operands.x,
        packed,
        operands.w_scale * (1 / FACTOR[4]),
        operands.x_scale,
        bias,
        gate,
        residual,
        kernel=matmul,
        out_shape=jax.ShapeDtypeStruct((rows, n), out_dtype),
        grid=(-(-m // tiles.m) * -(-n // tiles.n), groups),
        name="quantized_matmul",
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        compute_capability=target.capability,
        M=m,
        N=n,
        PANEL=panel,
        TILE_M=tiles.m,
        TILE_N=tiles.n,
        TILE_K=tiles.k,
        ROWS_TOGETHER=ROWS_TOGETHER,
        BIAS=operands.bias is not None,
        GELU=activation == "gelu_tanh",
        GATE=operands.gate is not None,
        RESIDUAL=operands.residual is not None,
    )
