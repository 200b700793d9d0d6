"""Pallas for TPU: a block of tokens is read once and written once, head by head, to where attention wants it.

A head of 128 channels is one column of registers, so taking it out of a token's row moves nothing between lanes. Its norm
is a sum over lanes, and the rotation's partner of a channel is a turn by one lane. The video's tokens are written where they
belong; XLA then adds the few tokens of the text, and zeros, to the same array.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from pallas_kernels.frame_order import Strips, reordered, strips_of
from pallas_kernels.refs import Operand, Ref
from pallas_kernels.rotary_heads import xla
from pallas_kernels.rotary_heads.layout import ArrangedHeads, HeadLayout, arranged, placed
from pallas_kernels.rotary_heads.reference import Projection
from pallas_kernels.rotary_heads.tpu_kernel import kernel
from pallas_kernels.targets import Target
from pallas_kernels.tpu_params import LANES, VMEM_LIMIT, interpret_params, needs_tpu

_BLOCK = 1024
# bfloat16 tiles have 16 rows.
_ROWS = 16


def objection(
    *, backend: str, head_dim: int, strips: Strips | None = None, **_: object
) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_tpu(backend):
        return reason
    if head_dim != LANES:
        return f"head size {head_dim} is not {LANES}"
    return strips.objection() if strips else None


def rotary_heads(
    projections: tuple[Projection, ...],
    cos: Float[Array, "N D"],
    sin: Float[Array, "N D"],
    second: Bool[Array, "B H"] | None,
    *,
    heads: int,
    epsilon: float,
    layout: HeadLayout,
    target: Target,
) -> ArrangedHeads:
    """See `api.arranged_heads`. Gradients are those of the XLA implementation."""
    launch = partial(_launch, heads=heads, epsilon=epsilon, layout=layout, target=target)
    plain = partial(xla.rotary_heads, heads=heads, epsilon=epsilon, layout=layout)
    differentiable = jax.custom_vjp(launch)
    differentiable.defvjp(
        lambda *operands: (launch(*operands), operands),
        lambda operands, slopes: jax.vjp(plain, *operands)[1](slopes),
    )
    return differentiable(projections, cos, sin, second)


def _launch(
    projections: tuple[Projection, ...],
    cos: Array,
    sin: Array,
    second: Array | None,
    *,
    heads: int,
    epsilon: float,
    layout: HeadLayout,
    target: Target,
) -> ArrangedHeads:
    """The kernel writes the rotated tokens of the first projection to their rows; other tokens have calls of their own and follow them."""
    first, *others = projections
    count = min(len(cos), first.projected.shape[1])
    run = partial(_heads, heads=heads, epsilon=epsilon, target=target)
    rest = [first._replace(projected=first.projected[:, count:]), *others]
    parts, start = [], count
    for one in rest:
        if length := one.projected.shape[1]:
            tables = _padded(cos[start : start + length], sin[start : start + length], length)
            parts.append(run(one, *tables, None, HeadLayout.plain(length, length)))
            start += length
    if not count:
        q, k, v = (jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True))
        return arranged(q, k, v, len(cos), layout, second)
    q, k, v = run(first, cos[:count], sin[:count], second, layout)
    text, *others_of = (
        (jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True))
        if parts
        else (x[:, :, :0] for x in (q, k, v))
    )
    # Rotated tokens of other projections follow without a gap.
    turned, gap = len(cos) - count, layout.text - len(cos)
    k, v = (_behind(x, more, count, turned, gap) for x, more in zip((k, v), others_of, strict=True))
    if layout.apart:
        return ArrangedHeads(_behind(q, q[:, :, :0], count, 0, 0), k, v, text)
    return ArrangedHeads(_behind(q, text, count, turned, gap), k, v)


def _padded(cos: Array, sin: Array, length: int) -> tuple[Array, Array]:
    """Tables that do not rotate the tokens after those that they have rows for."""
    after = ((0, length - len(cos)), (0, 0))
    return jnp.pad(cos, after, constant_values=1), jnp.pad(sin, after)


def _behind(x: Array, rest: Array, count: int, turned: int, gap: int) -> Array:
    """All rows of x after the first `count`, in place: `rest`, with zeros after its `turned` first rows and at the end."""
    rows = x.shape[2] - count
    if not rows:
        return x
    return jax.lax.dynamic_update_slice(
        x, placed(rest, turned, turned + gap, rows), (0, 0, count, 0)
    )


def _heads(
    projection: Projection,
    cos: Array,
    sin: Array,
    second: Array | None,
    layout: HeadLayout,
    *,
    heads: int,
    epsilon: float,
    target: Target,
) -> tuple[Array, Array, Array]:
    """q, k and v of as many tokens as the tables have rows; what is in later rows is undefined."""
    projected, q_scale, k_scale = projection
    (samples, _, _), size, tokens = projected.shape, q_scale.shape[0], len(cos)
    strips = strips_of(tokens, layout.frames)
    block = strips.rows if strips else min(_BLOCK, -(-tokens // _ROWS) * _ROWS)
    flags = [] if second is None or strips is None else [*_sources(second)]

    def column(part: int) -> pl.BlockSpec:
        def index(i: Array, b: Array, h: Array, *flags: Ref) -> tuple[Array, Array, Array]:
            # Heads in the second order do not read this block: they keep that of a head that does.
            head = flags[1][b * heads + h] if flags else h
            return b, i, part * heads + head

        return pl.BlockSpec((None, block, size), index)

    row = pl.BlockSpec((1, size), lambda i, b, h, *_: (0, 0))
    table = pl.BlockSpec((block, size), lambda i, b, h, *_: (i, 0))
    operands: dict[str, Operand] = {
        **{name: (projected, column(part)) for part, name in enumerate(("q", "k", "v"))},
        # Rounded first: the product of two bfloat16 numbers is exact in float32.
        "q_scale": (q_scale.astype(projected.dtype).astype(jnp.float32)[None], row),
        "k_scale": (k_scale.astype(projected.dtype).astype(jnp.float32)[None], row),
        "cos": (cos, table),
        "sin": (sin, table),
    }
    scratch = {"signed_sin": pltpu.VMEM((block, size), jnp.float32)}
    if strips:
        everyone = jnp.ones((1, 2), jnp.bool_)
        tables = reordered(jnp.stack([cos, sin], axis=0)[None], everyone, strips.frames)[0]
        operands |= {"second_cos": (tables[0], table), "second_sin": (tables[1], table)}
        operands["projected"] = projected, pl.BlockSpec(memory_space=pl.ANY)
        scratch |= {
            "second_signed_sin": pltpu.VMEM((block, size), jnp.float32),
            "strips": pltpu.VMEM((2, 3, block, size), projected.dtype),
            # As many rows more as the last block begins earlier.
            "wide": pltpu.VMEM((block + strips.repeated * strips.frames, size), jnp.float32),
            "semaphores": pltpu.SemaphoreType.DMA((2,)),
        }
    by_head = pl.BlockSpec((None, None, block, size), lambda i, b, h, *_: (b, h, i, 0))
    outputs = {"q_out": layout.queries, "k_out": layout.keys, "v_out": layout.keys}
    names = (*(("second", "source") if flags else ()), *operands, *outputs, *scratch)
    return pl.pallas_call(
        partial(kernel, names=names, heads=heads, epsilon=epsilon, strips=strips),
        out_shape=[
            jax.ShapeDtypeStruct((samples, heads, rows, size), projected.dtype)
            for rows in outputs.values()
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(flags),
            # Tokens are outermost: all heads of all samples share a block of the tables.
            grid=(strips.blocks if strips else pl.cdiv(tokens, block), samples, heads),
            in_specs=[spec for _, spec in operands.values()],
            out_specs=[by_head] * 3,
            scratch_shapes=list(scratch.values()),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret_params(target),
        name="rotary_heads",
    )(*flags, *(array for array, _ in operands.values()))


def _sources(second: Bool[Array, "B H"]) -> tuple[Array, Array]:
    """Of all heads of all samples, int32: whether one wants the second order, and the head whose block in the first order is
    fetched while it is made: its own, or the last one's before it that is in the first order, or the first one's after it."""
    head = jnp.arange(second.shape[1], dtype=jnp.int32)
    before = jax.lax.cummax(jnp.where(second, -1, head[None]), axis=1)
    following = jnp.argmin(second, axis=1, keepdims=True).astype(jnp.int32)
    return second.astype(jnp.int32).reshape(-1), jnp.where(before < 0, following, before).reshape(
        -1
    )
