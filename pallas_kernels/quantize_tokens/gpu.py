"""Pallas for GPU (Triton): a program takes some rows, and goes over their channels a slice at a time.

A Triton kernel cannot keep a row in shared memory, and none of its arrays may have 3,072 columns. So every pass reads the
row again, from the cache, and the last pass computes all values a second time, now that the largest is known.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import magnitude, of_magnitudes
from pallas_kernels.activations import Activation, activate
from pallas_kernels.gpu_params import inside, load, needs_gpu, store, triton_options
from pallas_kernels.quantize_tokens.reference import Norm
from pallas_kernels.refs import Operand, Ref, Span
from pallas_kernels.targets import Target

_CHANNELS = 128  # of a slice without a rotation


def objection(*, backend: str, channels: int, rotated: int, **_: object) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_gpu(backend):
        return reason
    if rotated and (rotated & (rotated - 1) or rotated < 16 or rotated > 256):
        return f"a rotation of {rotated} channels is not a power of two from 16 to 256"
    width = _width(channels, rotated)
    return f"{channels} channels are not a multiple of 16" if width < 16 else None


def _width(channels: int, rotated: int) -> int:
    return rotated or min(_CHANNELS, channels & -channels)


def quantize_tokens(
    x: Float[Array, "M C"],
    gain: Float[Array, "G C"],
    offset: Float[Array, "G C"],
    rotation: Float[Array, "R R"] | None,
    clip: Float[Array, ""],
    *,
    norm: Norm,
    activation: Activation,
    limit: int,
    epsilon: float,
    target: Target,
) -> tuple[Int8[Array, "M C"], Float[Array, " M"]]:
    """See `api.quantize_tokens`."""
    groups, channels = gain.shape
    rows, width = x.shape[0] // groups, _width(channels, 0 if rotation is None else len(rotation))
    # Tensor cores multiply 16 rows or more; blocks larger than these spill registers.
    block, warps = (16, 8) if width > 128 else (32, 4)
    tile = pl.BlockSpec((None, block, channels), lambda i, g: (g, i, 0))
    by_group = pl.BlockSpec((None, channels), lambda i, g: (g, 0))
    operands: dict[str, Operand] = {
        "clip": (clip.reshape(1), pl.BlockSpec((1,), lambda i, g: (0,))),
        "x": (x.reshape(groups, rows, channels), tile),
        "gain": (gain, by_group),
        "offset": (offset, by_group),
    }
    if rotation is not None:
        operands["rotation"] = (rotation, pl.BlockSpec(rotation.shape, lambda i, g: (0, 0)))
    kernel = partial(
        _kernel,
        names=(*operands, "integers", "scales"),
        rows=rows,
        width=width,
        norm=norm,
        activation=activation,
        limit=limit,
        epsilon=epsilon,
    )
    integers, scales = pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((groups, rows, channels), jnp.int8),
            jax.ShapeDtypeStruct((groups, rows), jnp.float32),
        ],
        grid=(pl.cdiv(rows, block), groups),
        in_specs=[spec for _, spec in operands.values()],
        out_specs=[tile, pl.BlockSpec((None, block), lambda i, g: (g, i))],
        name="quantize_tokens",
        **triton_options(target, warps=warps, stages=2),
    )(*(array for array, _ in operands.values()))
    return integers.reshape(x.shape), scales.reshape(-1)


def _kernel(
    *refs: Ref,
    names: tuple[str, ...],
    rows: int,
    width: int,
    norm: Norm,
    activation: Activation,
    limit: int,
    epsilon: float,
) -> None:
    ref = dict(zip(names, refs, strict=True))
    x, rotation = ref["x"], load(ref["rotation"]) if "rotation" in ref else None
    block, channels = x.shape
    valid = inside(pl.program_id(0) * block, block, rows)

    def over_slices(body: Callable[[Span, Array], Array], start: Array) -> Array:
        """Fold a function of (channels of a slice, carried value) over all slices."""
        return jax.lax.fori_loop(
            0, channels // width, lambda i, kept: body(pl.ds(i * width, width), kept), start
        )

    def values(part: Span) -> Array:
        return activate(load(x.at[:, part], rows=valid).astype(jnp.float32), activation)

    spread = jnp.zeros((block, width), jnp.float32)
    if norm == "layer":
        mean = over_slices(lambda part, kept: kept + values(part), spread).sum(axis=1) / channels
        squares = over_slices(
            lambda part, kept: kept + jnp.square(values(part) - mean[:, None]), spread
        )
        inverse = jax.lax.rsqrt(squares.sum(axis=1) / channels + epsilon)

    def transformed(part: Span) -> Array:
        y = values(part)
        if norm == "layer":
            y = (y - mean[:, None]) * inverse[:, None]
        y = y * load(ref["gain"].at[part])[None] + load(ref["offset"].at[part])[None]
        if rotation is not None:
            y = jnp.dot(y.astype(rotation.dtype), rotation, preferred_element_type=jnp.float32)
        return y

    kept = over_slices(
        lambda part, kept: jnp.maximum(kept, magnitude(transformed(part))),
        jnp.zeros((block, width), jnp.int32),
    )
    largest = of_magnitudes(kept) * load(ref["clip"])
    store(ref["scales"], largest / limit, columns=valid)
    inverse_scale = (limit / largest)[:, None]

    def write(part: Span, kept: Array) -> Array:
        scaled = jnp.clip(transformed(part) * inverse_scale, -limit - 1, limit)
        store(ref["integers"].at[:, part], _round(scaled), rows=valid)
        return kept

    over_slices(write, jnp.int32(0))


def _round(x: Array) -> Array:
    """To the nearest integer, ties to even; Triton has only `floor`."""
    below = jnp.floor(x)
    rest, odd = x - below, below - 2 * jnp.floor(0.5 * below)
    return below + jnp.where(rest == 0.5, odd, jnp.where(rest > 0.5, 1.0, 0.0))
