"""Pallas for TPU: weights stay packed in HBM and become int8 in vector memory, right before the matrix unit.

A byte holds rows that are K/2 (or K/4) apart, so that the two (four) panels of activations that it meets are blocks of
the same array. Mosaic has neither an int8 x int4 dot nor int8 additions, but shifts and masks of words; what they multiply
the weights by goes into the scale.
"""

import operator
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.quantized_matmul.packing import FACTOR, PARTS, PackedWeight, widened
from pallas_kernels.quantized_matmul.tiles import Tiles, tpu_tiles
from pallas_kernels.targets import Target
from pallas_kernels.tpu_params import LANES, VMEM_LIMIT, interpret_params, needs_tpu


def objection(
    *, backend: str, layout: str, bits: int, weight_only: bool, rows: int, **_: Any
) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_tpu(backend):
        return reason
    if layout != "bytes":
        return f"needs weights in layout 'bytes', not {layout!r}"
    if weight_only:
        return "is for int8 activations"
    multiple = PARTS[bits] * LANES
    return f"K = {rows} is not a multiple of {multiple}" if rows % multiple else None


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
    tiles: Tiles | None = None,
) -> Array:
    """See `api.quantized_matmul`.

    Args:
        x, x_scale, weight, w_scale, bias, residual, gate: checked operands.
        activation: "none" or "gelu_tanh".
        out_dtype: of the result.
        target: device to build for.
        tiles: instead of those of `tpu_tiles`.
    """
    parts = PARTS[weight.bits]
    groups = 1 if gate is None else gate.shape[0]
    (rows, k), n = x.shape, weight.shape[1]
    m, panel = rows // groups, k // parts
    tiles = tiles or tpu_tiles(m, n, panel, parts, target.name)
    steps = panel // tiles.k
    x = x.reshape(groups, m, k)
    operands: list[tuple[Array, pl.BlockSpec]] = []
    # One array, seen once for each panel.
    for part in range(parts):
        index = partial(lambda part, g, i, j, s: (g, i, part * steps + s), part)
        operands.append((x, pl.BlockSpec((1, tiles.m, tiles.k), index)))
    # 6 bits: a byte of the nibble plane holds two of the four panels, so that this plane, too, is seen twice.
    for plane, views in zip(weight.planes, {4: (1,), 6: (2, 1), 8: (1,)}[weight.bits], strict=True):
        for view in range(views):
            index = partial(lambda view, g, i, j, s: (view * steps + s, j), view)
            operands.append((plane, pl.BlockSpec((tiles.k, tiles.n), index)))
    row = pl.BlockSpec((1, tiles.n), lambda g, i, j, s: (0, j))
    tile = pl.BlockSpec((1, tiles.m, tiles.n), lambda g, i, j, s: (g, i, j))
    # Vectors over tokens lie along lanes: [M, 1] would be padded to 128 of them.
    operands.append(
        (
            x_scale.reshape(groups, 1, m),
            pl.BlockSpec((1, 1, tiles.m), lambda g, i, j, s: (g, 0, i)),
        )
    )
    operands.append((w_scale.reshape(1, n) * (1 / FACTOR[weight.bits]), row))
    if bias is not None:
        operands.append((bias.reshape(1, n), row))
    if gate is not None:
        by_group = pl.BlockSpec((1, 1, tiles.n), lambda g, i, j, s: (g, 0, j))
        operands.append((gate.reshape(groups, 1, n), by_group))
    if residual is not None:
        operands.append((residual.reshape(groups, m, n), tile))
    kernel = partial(
        _kernel,
        bits=weight.bits,
        steps=steps,
        activation=activation,
        optional=(bias is not None, gate is not None, residual is not None),
    )
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((groups, m, n), out_dtype),
        grid=(groups, pl.cdiv(m, tiles.m), pl.cdiv(n, tiles.n), steps),
        in_specs=[spec for _, spec in operands],
        out_specs=tile,
        scratch_shapes=[pltpu.VMEM((tiles.m, tiles.n), jnp.int32)] if steps > 1 else [],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * n * k,
            bytes_accessed=x.size + weight.nbytes + rows * n * out_dtype.itemsize,
            transcendentals=rows * n if activation != "none" else 0,
        ),
        interpret=interpret_params(target),
        name="quantized_matmul",
    )(*(array for array, _ in operands))
    return out.reshape(rows, n)


def _kernel(*refs: Any, bits: int, steps: int, activation: str, optional: tuple[bool, ...]) -> None:
    parts, planes = PARTS[bits], {4: 1, 6: 3, 8: 1}[bits]
    xs, rest = refs[:parts], refs[parts:]
    widened = _widen(bits, [plane[...] for plane in rest[:planes]])
    x_scale, w_scale, *rest = rest[planes:]
    bias, gate, residual = (rest.pop(0) if given else None for given in optional)
    out, *sums = rest
    pairs = zip(xs, widened, strict=True)
    products = [jnp.dot(x[0], w, preferred_element_type=jnp.int32) for x, w in pairs]
    partial_sum = reduce(operator.add, products)

    def finish(total: Array) -> None:
        y = total.astype(jnp.float32) * x_scale[0].reshape(-1, 1) * w_scale[...]
        if bias is not None:
            y = y + bias[...].astype(jnp.float32)
        if activation == "gelu_tanh":
            y = jax.nn.gelu(y, approximate=True)
        if gate is not None:
            y = y * gate[0].astype(jnp.float32)
        if residual is not None:
            y = residual[0].astype(jnp.float32) + y
        out[0] = y.astype(out.dtype)

    if steps == 1:
        finish(partial_sum)
        return
    (accumulator,) = sums
    step = pl.program_id(3)

    @pl.when(step == 0)
    def _() -> None:
        accumulator[...] = partial_sum

    @pl.when(step > 0)
    def _() -> None:
        accumulator[...] += partial_sum

    @pl.when(step == steps - 1)
    def _() -> None:
        finish(accumulator[...])


def _widen(bits: int, planes: list[Array]) -> list[Array]:
    """One int8 block for each panel of K, `FACTOR` times the weights."""
    if bits == 8:
        return planes
    # Four bytes at once, as not every libtpu shifts int8.
    words = widened(bits, [pltpu.bitcast(plane, jnp.int32) for plane in planes])
    return [pltpu.bitcast(word, jnp.int8) for word in words]
