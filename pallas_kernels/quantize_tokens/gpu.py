"""Pallas for GPU (Triton): a program takes some rows, and goes over their channels a slice at a time.

Triton has no memory of its own that a kernel could keep a row in, and none of its arrays may have 3,072 columns: every
pass reads the row again, from the cache, and the last one computes again what the largest value was taken from.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from pallas_kernels.absmax import SMALLEST
from pallas_kernels.gpu_params import inside, load, needs_gpu, store, triton_options
from pallas_kernels.targets import Target

_CHANNELS = 128  # of a slice, where no rotation says otherwise


def objection(*, backend: str, channels: int, rotated: int, **_: Any) -> str | None:
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
    x: Array,
    gain: Array,
    offset: Array,
    rotation: Array | None,
    clip: Array,
    *,
    norm: str,
    activation: str,
    limit: int,
    epsilon: float,
    target: Target,
) -> tuple[Array, Array]:
    """See `api.quantize_tokens`."""
    groups, channels = gain.shape
    rows, width = x.shape[0] // groups, _width(channels, 0 if rotation is None else len(rotation))
    # Tensor cores multiply 16 rows or more; more than these would spill registers.
    block, warps = (16, 8) if width > 128 else (32, 4)
    tile = pl.BlockSpec((None, block, channels), lambda i, g: (g, i, 0))
    by_group = pl.BlockSpec((None, channels), lambda i, g: (g, 0))
    operands = [
        (clip.reshape(1), pl.BlockSpec((1,), lambda i, g: (0,))),
        (x.reshape(groups, rows, channels), tile),
        (gain, by_group),
        (offset, by_group),
    ]
    if rotation is not None:
        operands.append((rotation, pl.BlockSpec(rotation.shape, lambda i, g: (0, 0))))
    kernel = partial(
        _kernel,
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
        in_specs=[spec for _, spec in operands],
        out_specs=[tile, pl.BlockSpec((None, block), lambda i, g: (g, i))],
        name="quantize_tokens",
        **triton_options(target, warps=warps, stages=2),
    )(*(array for array, _ in operands))
    return integers.reshape(x.shape), scales.reshape(-1)


def _kernel(
    clip: Any,
    x: Any,
    gain: Any,
    offset: Any,
    *refs: Any,
    rows: int,
    width: int,
    norm: str,
    activation: str,
    limit: int,
    epsilon: float,
) -> None:
    rotation = load(refs[0]) if len(refs) == 3 else None
    integers, scales = refs[-2:]
    block, channels = x.shape
    valid = inside(pl.program_id(0) * block, block, rows)

    def over_slices(body: Any, start: Array) -> Array:
        """Fold a function of (channels of a slice, carried value) over all slices."""
        return jax.lax.fori_loop(
            0, channels // width, lambda i, kept: body(pl.ds(i * width, width), kept), start
        )

    def values(part: Any) -> Array:
        y = load(x.at[:, part], rows=valid).astype(jnp.float32)
        return jax.nn.gelu(y, approximate=True) if activation == "gelu_tanh" else y

    spread = jnp.zeros((block, width), jnp.float32)
    if norm == "layer":
        mean = over_slices(lambda part, kept: kept + values(part), spread).sum(axis=1) / channels
        squares = over_slices(
            lambda part, kept: kept + jnp.square(values(part) - mean[:, None]), spread
        )
        inverse = jax.lax.rsqrt(squares.sum(axis=1) / channels + epsilon)

    def transformed(part: Any) -> Array:
        y = values(part)
        if norm == "layer":
            y = (y - mean[:, None]) * inverse[:, None]
        y = y * load(gain.at[part])[None] + load(offset.at[part])[None]
        if rotation is not None:
            y = jnp.dot(y.astype(rotation.dtype), rotation, preferred_element_type=jnp.float32)
        return y

    largest = over_slices(
        lambda part, kept: jnp.maximum(kept, jnp.abs(transformed(part))), spread
    ).max(axis=1)
    largest = jnp.maximum(largest, SMALLEST) * load(clip)
    store(scales, largest / limit, columns=valid)
    inverse_scale = (limit / largest)[:, None]

    def write(part: Any, kept: Array) -> Array:
        scaled = jnp.clip(transformed(part) * inverse_scale, -limit - 1, limit)
        store(integers.at[:, part], _round(scaled), rows=valid)
        return kept

    over_slices(write, jnp.int32(0))


def _round(x: Array) -> Array:
    """To the nearest integer, to the even one of two; Triton has `floor` only."""
    below = jnp.floor(x)
    rest, odd = x - below, below - 2 * jnp.floor(0.5 * below)
    return below + jnp.where(rest == 0.5, odd, jnp.where(rest > 0.5, 1.0, 0.0))
