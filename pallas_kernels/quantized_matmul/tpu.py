"""Pallas for TPU: weights stay packed in HBM and become int8 in vector memory, right before the matrix unit.

A byte holds rows that are K/2 (or K/4) apart, so the two (four) panels of activations that it meets are blocks of the same
array. Mosaic has neither an int8 x int4 dot nor int8 additions, but it has shifts and masks of words; the factor by which
these multiply the weights goes into the scale.
"""

import operator
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pallas_kernels.activations import Activation, activate
from pallas_kernels.quantized_matmul.operands import MatmulOperands
from pallas_kernels.quantized_matmul.packing import FACTOR, PARTS, WeightLayout, widened
from pallas_kernels.quantized_matmul.tiles import Tiles, tpu_tiles
from pallas_kernels.refs import Operand, Ref
from pallas_kernels.targets import Target
from pallas_kernels.tpu_params import LANES, VMEM_LIMIT, interpret_params, needs_tpu

_VIEWS = {4: (1,), 6: (2, 1), 8: (1,)}
"""Bits -> how many blocks of each plane a step reads. With 6 bits a byte of the nibble plane holds two of the four panels, so
the upper and the lower half of that plane are read side by side."""


def objection(
    *, backend: str, layout: WeightLayout, bits: int, weight_only: bool, rows: int, **_: object
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
    operands: MatmulOperands,
    *,
    activation: Activation,
    out_dtype: jnp.dtype,
    target: Target,
    tiles: Tiles | None = None,
) -> Float[Array, "M N"]:
    """See `api.quantized_matmul`.

    Args:
        operands: checked, with int8 activations.
        activation: "none" or "gelu_tanh".
        out_dtype: of the result.
        target: device to build for.
        tiles: instead of those of `tpu_tiles`.
    """
    weight, parts = operands.weight, PARTS[operands.weight.bits]
    (rows, k, n), groups = operands.sizes, operands.groups
    m, panel = rows // groups, k // parts
    tiles = tiles or tpu_tiles(m, n, panel, parts, target.name)
    steps = panel // tiles.k
    inputs = _inputs(operands, tiles, steps)
    tile = pl.BlockSpec((1, tiles.m, tiles.n), lambda g, i, j, s: (g, i, j))
    scratch = {"acc": pltpu.VMEM((tiles.m, tiles.n), jnp.int32)} if steps > 1 else {}
    kernel = partial(
        _kernel,
        names=(*inputs, "out", *scratch),
        bits=weight.bits,
        steps=steps,
        activation=activation,
    )
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((groups, m, n), out_dtype),
        grid=(groups, pl.cdiv(m, tiles.m), pl.cdiv(n, tiles.n), steps),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=tile,
        scratch_shapes=list(scratch.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * n * k,
            bytes_accessed=operands.x.size + weight.nbytes + rows * n * out_dtype.itemsize,
            transcendentals=rows * n if activation != "none" else 0,
        ),
        interpret=interpret_params(target),
        name="quantized_matmul",
    )(*(array for array, _ in inputs.values()))
    return out.reshape(rows, n)


def _inputs(operands: MatmulOperands, tiles: Tiles, steps: int) -> dict[str, Operand]:
    """The kernel's inputs: x0, x1, ... are panels of x, w0, w1, ... blocks of the weight's planes."""
    (rows, k, n), groups = operands.sizes, operands.groups
    weight, m = operands.weight, rows // groups
    x, x_scale = operands.x.reshape(groups, m, k), operands.x_scale
    assert x_scale is not None  # See `objection`.
    inputs: dict[str, Operand] = {}
    for part in range(PARTS[weight.bits]):
        index = partial(lambda part, g, i, j, s: (g, i, part * steps + s), part)
        inputs[f"x{part}"] = (x, pl.BlockSpec((1, tiles.m, tiles.k), index))
    views = [
        (plane, view)
        for plane, count in zip(weight.planes, _VIEWS[weight.bits], strict=True)
        for view in range(count)
    ]
    for number, (plane, view) in enumerate(views):
        index = partial(lambda view, g, i, j, s: (view * steps + s, j), view)
        inputs[f"w{number}"] = (plane, pl.BlockSpec((tiles.k, tiles.n), index))
    # Vectors over tokens lie along lanes: [M, 1] would be padded to 128 of them.
    by_row = pl.BlockSpec((1, 1, tiles.m), lambda g, i, j, s: (g, 0, i))
    by_column = pl.BlockSpec((1, tiles.n), lambda g, i, j, s: (0, j))
    inputs["x_scale"] = (x_scale.reshape(groups, 1, m), by_row)
    inputs["w_scale"] = (operands.w_scale.reshape(1, n) * (1 / FACTOR[weight.bits]), by_column)
    if operands.bias is not None:
        inputs["bias"] = (operands.bias.reshape(1, n), by_column)
    if operands.gate is not None:
        by_group = pl.BlockSpec((1, 1, tiles.n), lambda g, i, j, s: (g, 0, j))
        inputs["gate"] = (operands.gate.reshape(groups, 1, n), by_group)
    if operands.residual is not None:
        tile = pl.BlockSpec((1, tiles.m, tiles.n), lambda g, i, j, s: (g, i, j))
        inputs["residual"] = (operands.residual.reshape(groups, m, n), tile)
    return inputs


def _kernel(
    *refs: Ref, names: tuple[str, ...], bits: int, steps: int, activation: Activation
) -> None:
    ref = dict(zip(names, refs, strict=True))
    planes = [ref[f"w{number}"][...] for number in range(sum(_VIEWS[bits]))]
    products = [
        jnp.dot(ref[f"x{part}"][0], w, preferred_element_type=jnp.int32)
        for part, w in enumerate(_widen(bits, planes))
    ]
    partial_sum = reduce(operator.add, products)

    def finish(total: Int32[Array, "m n"]) -> None:
        y = total.astype(jnp.float32) * ref["x_scale"][0].reshape(-1, 1) * ref["w_scale"][...]
        if "bias" in ref:
            y = y + ref["bias"][...].astype(jnp.float32)
        y = activate(y, activation)
        if "gate" in ref:
            y = y * ref["gate"][0].astype(jnp.float32)
        if "residual" in ref:
            y = ref["residual"][0].astype(jnp.float32) + y
        ref["out"][0] = y.astype(ref["out"].dtype)

    if steps == 1:
        finish(partial_sum)
        return
    acc, step = ref["acc"], pl.program_id(3)

    @pl.when(step == 0)
    def _() -> None:
        acc[...] = partial_sum

    @pl.when(step > 0)
    def _() -> None:
        acc[...] += partial_sum

    @pl.when(step == steps - 1)
    def _() -> None:
        finish(acc[...])


def _widen(bits: int, planes: list[Array]) -> list[Array]:
    """One int8 block for each panel of K, `FACTOR` times the weights."""
    if bits == 8:
        return planes
    # Four bytes at once: not every libtpu can shift int8.
    words = widened(bits, [pltpu.bitcast(plane, jnp.int32) for plane in planes])
    return [pltpu.bitcast(word, jnp.int8) for word in words]
