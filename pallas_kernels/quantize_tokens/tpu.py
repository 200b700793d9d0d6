"""Pallas for TPU: a block of rows is read once and written once, as int8 with its scales.

The rotation works on aligned slices of channels, one product each: a reshape across lanes would move every register.
Between the passes over a row its values are kept in vector memory, so only one slice at a time occupies registers.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import SMALLEST, magnitude, of_magnitudes
from pallas_kernels.activations import Activation, activate
from pallas_kernels.quantize_tokens.reference import Norm
from pallas_kernels.refs import Operand, Ref, Span
from pallas_kernels.targets import Target
from pallas_kernels.tpu_params import LANES, VMEM_LIMIT, interpret_params, needs_tpu

# Values of a block: 256 rows of 3,072 channels, 64 of 12,288.
_BLOCK_VALUES = 256 * 3072
# Slices of a step: operations of a single slice wait for each other; with all of them the compiler takes minutes.
_UNROLLED = 8


def objection(*, backend: str, channels: int, rotated: int, **_: object) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_tpu(backend):
        return reason
    if channels % LANES:
        return f"{channels} channels are not a multiple of {LANES}"
    return (
        f"a rotation of {rotated} channels is not a multiple of {LANES}"
        if rotated % LANES
        else None
    )


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
    rows = x.shape[0] // groups
    # int8 tiles have 32 rows.
    block = min(max(32, _BLOCK_VALUES // channels // 32 * 32), 256, -(-rows // 32) * 32)
    blocks = pl.cdiv(rows, block)
    tile = pl.BlockSpec((None, block, channels), lambda g, i: (g, i, 0))
    by_group = pl.BlockSpec((None, 1, channels), lambda g, i: (g, 0, 0))
    operands: dict[str, Operand] = {
        "clip": (clip.reshape(1), pl.BlockSpec(memory_space=pltpu.SMEM)),
        "x": (x.reshape(groups, rows, channels), tile),
        "gain": (gain[:, None], by_group),
        "offset": (offset[:, None], by_group),
    }
    if rotation is not None:
        operands["rotation"] = (rotation, pl.BlockSpec(rotation.shape, lambda g, i: (0, 0)))
    kernel = partial(
        _kernel,
        names=(*operands, "integers", "scales", "rotated"),
        norm=norm,
        activation=activation,
        limit=limit,
        epsilon=epsilon,
    )
    integers, scales = pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((groups, rows, channels), jnp.int8),
            jax.ShapeDtypeStruct((groups, blocks, 1, block), jnp.float32),
        ],
        grid=(groups, blocks),
        in_specs=[spec for _, spec in operands.values()],
        out_specs=[tile, pl.BlockSpec((None, None, 1, block), lambda g, i: (g, i, 0, 0))],
        scratch_shapes=[pltpu.VMEM((block, channels), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret_params(target),
        name="quantize_tokens",
    )(*(array for array, _ in operands.values()))
    return integers.reshape(x.shape), scales.reshape(groups, -1)[:, :rows].reshape(-1)


def _kernel(
    *refs: Ref,
    names: tuple[str, ...],
    norm: Norm,
    activation: Activation,
    limit: int,
    epsilon: float,
) -> None:
    ref = dict(zip(names, refs, strict=True))
    x, rotation, rotated = ref["x"], ref.get("rotation"), ref["rotated"]
    rows, channels = x.shape
    width = LANES if rotation is None else rotation.shape[0]

    def over_slices(body: Callable[[Span, Array], Array], start: Array) -> Array:
        """Fold a function of (channels of a slice, carried value) over all slices."""
        count = channels // width
        whole, kept = count // _UNROLLED * _UNROLLED, start

        def step(i: int | Array, kept: Array) -> Array:
            return body(pl.ds(i * width, width), kept)

        if whole:
            kept = jax.lax.fori_loop(0, whole, step, kept, unroll=_UNROLLED)
        # Not part of the loop: from jax 0.11 on libtpu unrolls it, and 0.0.48 crashes where two or more slices are left over.
        for i in range(whole, count):
            kept = step(i, kept)
        return kept

    def values(part: Span) -> Array:
        return activate(x[:, part].astype(jnp.float32), activation)

    # Sums and maxima are kept for each lane until the last slice: adding registers is cheap, adding lanes is not.
    spread = jnp.zeros((rows, width), jnp.float32)
    inverse: Array | float = 1.0
    if norm == "layer":
        total = over_slices(lambda part, kept: kept + values(part), spread)
        mean = total.sum(axis=1, keepdims=True) / channels
        squares = over_slices(lambda part, kept: kept + jnp.square(values(part) - mean), spread)
        inverse = jax.lax.rsqrt(squares.sum(axis=1, keepdims=True) / channels + epsilon)

    def transform(part: Span, largest: Array) -> Array:
        y = values(part)
        if norm == "layer":
            y = (y - mean) * inverse
        y = y * ref["gain"][:, part] + ref["offset"][:, part]
        if rotation is not None:
            y = jnp.dot(y.astype(rotation.dtype), rotation[...], preferred_element_type=jnp.float32)
        rotated[:, part] = y
        return jnp.maximum(largest, jnp.abs(y) if norm == "layer" else magnitude(y))

    if norm == "layer":
        # What is not finite in a row is in its variance too: nothing to look for in each value.
        largest = over_slices(transform, spread).max(axis=1, keepdims=True)
        largest = jnp.maximum(largest, SMALLEST) + inverse * 0
    else:
        kept = over_slices(transform, jnp.zeros((rows, width), jnp.int32))
        largest = of_magnitudes(kept)[:, None]
    largest = largest * ref["clip"][0]
    ref["scales"][...] = (largest / limit).reshape(1, rows)
    inverse_scale = limit / largest

    def store(part: Span, kept: Array) -> Array:
        scaled = jnp.round(rotated[:, part] * inverse_scale)
        ref["integers"][:, part] = jnp.clip(scaled, -limit - 1, limit).astype(jnp.int8)
        return kept

    over_slices(store, jnp.int32(0))
