"""Triton without Pallas, for 4 bits: tiles like those of `gpu.py`, and weights unpacked by instructions of our own.

It does not depend on Pallas' Triton backend, which jax is to drop. Nothing interprets it: where there is no GPU it is
compiled for one, not run.
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.quantized_matmul.gpu_tiles import ROWS_TOGETHER, GpuTiles, gpu_tiles
from pallas_kernels.quantized_matmul.packing import FACTOR, PackedWeight
from pallas_kernels.targets import Target


def objection(
    *, backend: str, layout: str, bits: int, rows: int, weight_only: bool, **_: Any
) -> str | None:
    """Why the kernel cannot serve a call."""
    if backend != "gpu":
        return f"needs a GPU, this is {backend}"
    if importlib.util.find_spec("jax_triton") is None:
        return "needs jax-triton: pip install 'qsjax[cuda]'"
    if bits != 4 or layout != "bytes_transposed":
        return f"needs 4 bits in layout 'bytes_transposed', not {bits} in {layout!r}"
    if weight_only:
        return "is for int8 activations"
    return f"K = {rows} is not a multiple of 64" if rows % 64 else None


def quantized_matmul(
    x: Array,
    x_scale: Array,
    weight: PackedWeight,
    w_scale: Array,
    bias: Array | None,
    residual: Array | None,
    gate: Array | None,
    *,
    activation: str,
    out_dtype: jnp.dtype,
    target: Target,
    tiles: GpuTiles | None = None,
) -> Array:
    """See `api.quantized_matmul`, and `gpu.quantized_matmul` for the arguments."""
    import jax_triton

    from pallas_kernels.quantized_matmul.triton_kernel import matmul

    groups = 1 if gate is None else gate.shape[0]
    (rows, k), n = x.shape, weight.shape[1]
    m, panel = rows // groups, k // 2
    tiles = tiles or gpu_tiles(m, panel, 4, narrow=True)
    (packed,) = weight.planes
    # Arrays that are not there are never read.
    given = [w_scale if one is None else one for one in (bias, gate, residual)]
    return jax_triton.triton_call(
        x,
        packed,
        w_scale * (1 / FACTOR[4]),
        x_scale,
        *given,
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
        BIAS=bias is not None,
        GELU=activation == "gelu_tanh",
        GATE=gate is not None,
        RESIDUAL=residual is not None,
    )
