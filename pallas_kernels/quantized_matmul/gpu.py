"""Pallas for GPU (Triton): packed weights are read as they are, widened in registers, and multiplied by tensor cores.

Weights have K last: int8 tensor cores read both operands along K. Without a scale of activations the same kernel
multiplies floats (W4A16, W8A16), for which the integers are exact in every float type.
"""

import operator
from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from pallas_kernels.activations import Activation, activate
from pallas_kernels.gpu_params import inside, load, needs_gpu, store, triton_options
from pallas_kernels.quantized_matmul.gpu_tiles import ROWS_TOGETHER, GpuTiles, gpu_tiles
from pallas_kernels.quantized_matmul.operands import MatmulOperands
from pallas_kernels.quantized_matmul.packing import FACTOR, PARTS, WeightLayout, widened
from pallas_kernels.refs import Operand, Ref
from pallas_kernels.targets import Target


def objection(
    *, backend: str, layout: WeightLayout, bits: int, rows: int, **_: object
) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_gpu(backend):
        return reason
    if layout != "bytes_transposed":
        return f"needs weights in layout 'bytes_transposed', not {layout!r}"
    multiple = PARTS[bits] * 32
    return f"K = {rows} is not a multiple of {multiple}" if rows % multiple else None


def quantized_matmul(
    operands: MatmulOperands,
    *,
    activation: Activation,
    out_dtype: jnp.dtype,
    target: Target,
    tiles: GpuTiles | None = None,
) -> Float[Array, "M N"]:
    """See `api.quantized_matmul`.

    Args:
        operands: checked.
        activation: "none" or "gelu_tanh".
        out_dtype: of the result.
        target: device to build for.
        tiles: instead of those of `gpu_tiles`.
    """
    x, weight = operands.x, operands.weight
    (rows, k, n), groups = operands.sizes, operands.groups
    m, panel = rows // groups, k // PARTS[weight.bits]
    far_apart = rows * max(k * x.dtype.itemsize, n * out_dtype.itemsize) > 2**32
    tiles = tiles or gpu_tiles(m, panel, weight.bits, narrow=far_apart)
    down, across = pl.cdiv(m, tiles.m), pl.cdiv(n, tiles.n)

    def place(program: Array) -> tuple[Array, Array]:
        """Row and column of a program's tile: down a band of rows, then to the next column."""
        band = jax.lax.div(program, ROWS_TOGETHER * across)
        within = program - band * (ROWS_TOGETHER * across)
        height = jnp.minimum(down - band * ROWS_TOGETHER, ROWS_TOGETHER)
        return band * ROWS_TOGETHER + jax.lax.rem(within, height), jax.lax.div(within, height)

    tile = pl.BlockSpec((None, tiles.m, tiles.n), lambda p, g: (g, *place(p)))
    columns = pl.BlockSpec((tiles.n,), lambda p, g: (place(p)[1],))
    x_spec = pl.BlockSpec((None, tiles.m, k), lambda p, g: (g, place(p)[0], 0))
    inputs: dict[str, Operand] = {"x": (x.reshape(groups, m, k), x_spec)}
    for name, plane in zip(("plane", "low"), weight.planes, strict=False):
        spec = pl.BlockSpec((tiles.n, plane.shape[1]), lambda p, g: (place(p)[1], 0))
        inputs[name] = (plane, spec)
    inputs["w_scale"] = (operands.w_scale * (1 / FACTOR[weight.bits]), columns)
    if operands.x_scale is not None:
        rows_spec = pl.BlockSpec((None, tiles.m), lambda p, g: (g, place(p)[0]))
        inputs["x_scale"] = (operands.x_scale.reshape(groups, m), rows_spec)
    if operands.bias is not None:
        inputs["bias"] = (operands.bias, columns)
    if operands.gate is not None:
        by_group = pl.BlockSpec((None, tiles.n), lambda p, g: (g, place(p)[1]))
        inputs["gate"] = (operands.gate, by_group)
    if operands.residual is not None:
        inputs["residual"] = (operands.residual.reshape(groups, m, n), tile)
    kernel = partial(
        _kernel,
        names=(*inputs, "out"),
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
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=tile,
        name="quantized_matmul",
        **triton_options(target, warps=tiles.warps, stages=tiles.stages),
    )(*(array for array, _ in inputs.values()))
    return out.reshape(rows, n)


def _kernel(
    *refs: Ref,
    names: tuple[str, ...],
    bits: int,
    tiles: GpuTiles,
    sizes: tuple[int, int, int],
    place: Callable[[Array], tuple[Array, Array]],
    activation: Activation,
) -> None:
    ref = dict(zip(names, refs, strict=True))
    (m, n, panel), (i, j) = sizes, place(pl.program_id(0))
    rows, columns = inside(i * tiles.m, tiles.m, m), inside(j * tiles.n, tiles.n, n)
    kind = jnp.int32 if "x_scale" in ref else jnp.float32

    def step(index: Array, acc: Array) -> Array:
        def part(name: str, panels: int, mask: Bool[Array, " rows"] | None) -> Array:
            """The step's part of a panel of K."""
            start = panels * panel + index * tiles.k
            return load(ref[name].at[:, pl.ds(start, tiles.k)], rows=mask)

        blocks = [part("plane", view, columns) for view in range(2 if bits == 6 else 1)]
        blocks += [part("low", 0, columns)] if bits == 6 else []
        x_dtype = ref["x"].dtype
        products = [
            jax.lax.dot_general(
                part("x", view, rows), w.astype(x_dtype), (((1,), (1,)), ((), ())),
                preferred_element_type=kind,
            )
            for view, w in enumerate(widened(bits, blocks))
        ]  # fmt: skip
        return reduce(operator.add, products, acc)

    start = jnp.zeros((tiles.m, tiles.n), kind)
    y = jax.lax.fori_loop(0, panel // tiles.k, step, start).astype(jnp.float32)
    if "x_scale" in ref:
        y = y * load(ref["x_scale"], columns=rows)[:, None]
    y = y * load(ref["w_scale"], columns=columns)[None]
    if "bias" in ref:
        y = y + load(ref["bias"], columns=columns).astype(jnp.float32)[None]
    y = activate(y, activation)
    if "gate" in ref:
        y = y * load(ref["gate"], columns=columns).astype(jnp.float32)[None]
    if "residual" in ref:
        y = load(ref["residual"], rows=rows, columns=columns).astype(jnp.float32) + y
    store(ref["out"], y, rows=rows, columns=columns)
