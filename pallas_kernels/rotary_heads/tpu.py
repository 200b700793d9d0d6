"""Pallas for TPU: a block of tokens is read once and written once, head by head.

A head of 128 channels is one column of registers, so taking it out of a token's row moves nothing between lanes. Its norm
is a sum over lanes, and the rotation's partner of a channel is a turn by one lane.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.refs import Operand, Ref
from pallas_kernels.rotary_heads import xla
from pallas_kernels.rotary_heads.reference import Heads, Projection
from pallas_kernels.targets import Target
from pallas_kernels.tpu_params import LANES, VMEM_LIMIT, interpret_params, needs_tpu

_BLOCK = 1024
# bfloat16 tiles have 16 rows.
_ROWS = 16


def objection(*, backend: str, head_dim: int, **_: object) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_tpu(backend):
        return reason
    return None if head_dim == LANES else f"head size {head_dim} is not {LANES}"


def rotary_heads(
    projections: tuple[Projection, ...],
    cos: Float[Array, "N D"],
    sin: Float[Array, "N D"],
    *,
    heads: int,
    epsilon: float,
    target: Target,
) -> Heads:
    """See `api.rotary_heads`. Gradients are those of the XLA implementation."""
    launch = partial(_launch, heads=heads, epsilon=epsilon, target=target)
    plain = partial(xla.rotary_heads, heads=heads, epsilon=epsilon)
    differentiable = jax.custom_vjp(launch)
    differentiable.defvjp(
        lambda *operands: (launch(*operands), operands),
        lambda operands, slopes: jax.vjp(plain, *operands)[1](slopes),
    )
    return differentiable(projections, cos, sin)


def _launch(
    projections: tuple[Projection, ...],
    cos: Array,
    sin: Array,
    *,
    heads: int,
    epsilon: float,
    target: Target,
) -> Heads:
    """Each projection writes its rows of one result; XLA joins those that do not begin and end with a tile."""
    lengths = [projection.projected.shape[1] for projection in projections]
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    together = all(
        (start | length) % _ROWS == 0
        for start, length in zip(starts, lengths, strict=True)
        if start
    )
    parts: list[Heads] = []
    for projection, length, start in zip(projections, lengths, starts, strict=True):
        tables = (cos[start : start + length], sin[start : start + length])
        made = _write(
            projection,
            *tables,
            into=parts[-1] if together and parts else None,
            start=start if together else 0,
            total=sum(lengths) if together else length,
            heads=heads,
            epsilon=epsilon,
            target=target,
        )
        parts.append(made)
    if together:
        return parts[-1]
    q, k, v = (jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True))
    return q, k, v


def _write(
    projection: Projection,
    cos: Array,
    sin: Array,
    *,
    into: Heads | None,
    start: int,
    total: int,
    heads: int,
    epsilon: float,
    target: Target,
) -> Heads:
    """Rows `start` and following of q, k, v with `total` rows; the rows before are those of `into`, in place."""
    projected, q_scale, k_scale = projection
    (samples, length, _), size, tokens = projected.shape, q_scale.shape[0], len(cos)
    block = min(_BLOCK, -(-length // _ROWS) * _ROWS)
    if start:  # Blocks are counted from row 0: a power of two that divides what is before and what is written.
        block = min(_BLOCK, (start | length) & -(start | length))
    row = pl.BlockSpec((1, size), lambda i, b, h: (0, 0))

    def column(part: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, block, size), lambda i, b, h: (b, i, part * heads + h))

    operands: dict[str, Operand] = {
        **{name: (projected, column(part)) for part, name in enumerate(("q", "k", "v"))},
        # Rounded first: the product of two bfloat16 numbers is exact in float32.
        "q_scale": (q_scale.astype(projected.dtype).astype(jnp.float32)[None], row),
        "k_scale": (k_scale.astype(projected.dtype).astype(jnp.float32)[None], row),
    }
    scratch = []
    if tokens:
        last = pl.cdiv(tokens, block) - 1
        rows = pl.BlockSpec((block, size), lambda i, b, h: (jnp.minimum(i, last), 0))
        operands |= {"cos": (cos, rows), "sin": (sin, rows)}
        scratch = [pltpu.VMEM((block, size), jnp.float32)] * 2
    aliases = {}
    if into is not None:
        aliases = {len(operands) + n: n for n in range(3)}
        anywhere = pl.BlockSpec(memory_space=pl.ANY)
        operands |= {f"into_{n}": (array, anywhere) for n, array in enumerate(into)}
    first = start // block
    by_head = pl.BlockSpec((None, None, block, size), lambda i, b, h: (b, h, first + i, 0))
    shape = jax.ShapeDtypeStruct((samples, heads, total, size), projected.dtype)
    kernel = partial(
        _kernel,
        names=(*operands, "q_out", "k_out", "v_out", "cosines", "sines"),
        tokens=tokens,
        epsilon=epsilon,
    )
    q, k, v = pl.pallas_call(
        kernel,
        out_shape=[shape] * 3,
        # Tokens are outermost: all heads of all samples share a block of the tables.
        grid=(pl.cdiv(length, block), samples, heads),
        in_specs=[spec for _, spec in operands.values()],
        out_specs=[by_head] * 3,
        scratch_shapes=scratch,
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret_params(target),
        name="rotary_heads",
    )(*(array for array, _ in operands.values()))
    return q, k, v


def _kernel(*refs: Ref, names: tuple[str, ...], tokens: int, epsilon: float) -> None:
    ref = dict(zip(names, refs, strict=False))  # without tables there is no scratch
    block, size = ref["q"].shape
    lane = jax.lax.broadcasted_iota(jnp.int32, (block, size), 1)
    even = jax.lax.bitwise_and(lane, 1) == 0

    if tokens:

        @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
        def tables() -> None:
            row = pl.program_id(0) * block + jax.lax.broadcasted_iota(jnp.int32, (block, size), 0)
            sin = jnp.where(row < tokens, ref["sin"][...], 0.0)
            ref["cosines"][...] = jnp.where(row < tokens, ref["cos"][...], 1.0)
            # The sign belongs to the partner that a channel gets.
            ref["sines"][...] = jnp.where(even, -sin, sin)

    def prepared(x: Array, scale: Array) -> Array:
        dtype, x = x.dtype, x.astype(jnp.float32)
        mean_square = jnp.square(x).sum(axis=1, keepdims=True) / size
        x = (x * jax.lax.rsqrt(mean_square + epsilon)).astype(dtype).astype(jnp.float32)
        x = (x * scale).astype(dtype).astype(jnp.float32)
        if tokens:
            partner = jnp.where(even, pltpu.roll(x, size - 1, 1), pltpu.roll(x, 1, 1))
            x = x * ref["cosines"][...] + partner * ref["sines"][...]
        return x.astype(dtype)

    ref["q_out"][...] = prepared(ref["q"][...], ref["q_scale"][...])
    ref["k_out"][...] = prepared(ref["k"][...], ref["k_scale"][...])
    ref["v_out"][...] = ref["v"][...]
