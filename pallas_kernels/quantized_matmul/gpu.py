"""Pallas for GPU (Triton): packed weights are read as they are, widened in registers, and multiplied by tensor cores.

Weights have K last: int8 tensor cores read both operands along K. Without a scale of activations the same kernel
multiplies floats (W4A16, W8A16), for which the integers are exact in every float type.
"""

import operator
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from pallas_kernels.gpu_params import inside, load, needs_gpu, store, triton_options
from pallas_kernels.quantized_matmul.gpu_tiles import ROWS_TOGETHER, GpuTiles, gpu_tiles
from pallas_kernels.quantized_matmul.packing import FACTOR, PARTS, PackedWeight, widened
from pallas_kernels.targets import Target


def objection(*, backend: str, layout: str, bits: int, rows: int, **_: Any) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_gpu(backend):
        return reason
    if layout != "bytes_transposed":
        return f"needs weights in layout 'bytes_transposed', not {layout!r}"
    multiple = PARTS[bits] * 32
    return f"K = {rows} is not a multiple of {multiple}" if rows % multiple else None


def quantized_matmul(
    x: Array,
    x_scale: Array | None,
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
    """See `api.quantized_matmul`.

    Args:
        x, x_scale, weight, w_scale, bias, residual, gate: checked operands.
        activation: "none" or "gelu_tanh".
        out_dtype: of the result.
        target: device to build for.
        tiles: instead of those of `gpu_tiles`.
    """
    groups = 1 if gate is None else gate.shape[0]
    (rows, k), n = x.shape, weight.shape[1]
    m, panel = rows // groups, k // PARTS[weight.bits]
    far_apart = rows * max(k * x.dtype.itemsize, n * out_dtype.itemsize) > 2**32
    tiles = tiles or gpu_tiles(m, panel, weight.bits, narrow=far_apart)
    down, across = pl.cdiv(m, tiles.m), pl.cdiv(n, tiles.n)

    def place(program: Any) -> tuple[Any, Any]:
        """Row and column of a program's tile: down a band of rows, then to the next column."""
        band = jax.lax.div(program, ROWS_TOGETHER * across)
        within = program - band * (ROWS_TOGETHER * across)
        height = jnp.minimum(down - band * ROWS_TOGETHER, ROWS_TOGETHER)
        return band * ROWS_TOGETHER + jax.lax.rem(within, height), jax.lax.div(within, height)

    tile = pl.BlockSpec((None, tiles.m, tiles.n), lambda p, g: (g, *place(p)))
    columns = pl.BlockSpec((tiles.n,), lambda p, g: (place(p)[1],))
    operands: dict[str, tuple[Any, pl.BlockSpec]] = {
        "x": (
            x.reshape(groups, m, k),
            pl.BlockSpec((None, tiles.m, k), lambda p, g: (g, place(p)[0], 0)),
        )
    }
    for name, plane in zip(("plane", "low"), weight.planes, strict=False):
        spec = pl.BlockSpec((tiles.n, plane.shape[1]), lambda p, g: (place(p)[1], 0))
        operands[name] = (plane, spec)
    operands["w_scale"] = (w_scale * (1 / FACTOR[weight.bits]), columns)
    if x_scale is not None:
        rows_spec = pl.BlockSpec((None, tiles.m), lambda p, g: (g, place(p)[0]))
        operands["x_scale"] = (x_scale.reshape(groups, m), rows_spec)
    if bias is not None:
        operands["bias"] = (bias, columns)
    if gate is not None:
        operands["gate"] = (gate, pl.BlockSpec((None, tiles.n), lambda p, g: (g, place(p)[1])))
    if residual is not None:
        operands["residual"] = (residual.reshape(groups, m, n), tile)
    kernel = partial(
        _kernel,
        names=tuple(operands),
        bits=weight.bits,
        tiles=tiles,
        sizes=(m, n, panel),
        place=place,
        activation=activation,
    )
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((groups, m, n), out_dtype),
        grid=(down * across, groups),
        in_specs=[spec for _, spec in operands.values()],
        out_specs=tile,
        name="quantized_matmul",
        **triton_options(target, warps=tiles.warps, stages=tiles.stages),
    )(*(array for array, _ in operands.values()))
    return out.reshape(rows, n)


def _kernel(
    *refs: Any,
    names: tuple[str, ...],
    bits: int,
    tiles: GpuTiles,
    sizes: tuple[int, int, int],
    place: Any,
    activation: str,
) -> None:
    given, out = dict(zip(names, refs[:-1], strict=True)), refs[-1]
    (m, n, panel), (i, j) = sizes, place(pl.program_id(0))
    rows, columns = inside(i * tiles.m, tiles.m, m), inside(j * tiles.n, tiles.n, n)
    kind = jnp.int32 if "x_scale" in given else jnp.float32

    def step(index: Any, total: Array) -> Array:
        def part(ref: Any, panels: int, mask: Array | None) -> Array:
            """The step's part of a panel of K."""
            start = panels * panel + index * tiles.k
            return load(ref.at[:, pl.ds(start, tiles.k)], rows=mask)

        x, plane = given["x"], given["plane"]
        blocks = [part(plane, view, columns) for view in range(2 if bits == 6 else 1)]
        blocks += [part(given["low"], 0, columns)] if bits == 6 else []
        products = [
            jax.lax.dot_general(
                part(x, view, rows), w.astype(x.dtype), (((1,), (1,)), ((), ())),
                preferred_element_type=kind,
            )
            for view, w in enumerate(widened(bits, blocks))
        ]  # fmt: skip
        return reduce(operator.add, products, total)

    start = jnp.zeros((tiles.m, tiles.n), kind)
    y = jax.lax.fori_loop(0, panel // tiles.k, step, start).astype(jnp.float32)
    if "x_scale" in given:
        y = y * load(given["x_scale"], columns=rows)[:, None]
    y = y * load(given["w_scale"], columns=columns)[None]
    if "bias" in given:
        y = y + load(given["bias"], columns=columns).astype(jnp.float32)[None]
    if activation == "gelu_tanh":
        y = jax.nn.gelu(y, approximate=True)
    if "gate" in given:
        y = y * load(given["gate"], columns=columns).astype(jnp.float32)[None]
    if "residual" in given:
        y = load(given["residual"], rows=rows, columns=columns).astype(jnp.float32) + y
    store(out, y, rows=rows, columns=columns)
