"""Pallas for TPU: a block of rows of a head becomes a column of the tokens' array.

Heads in the second order are written frame by frame: a strided load takes a frame's rows of a block, a copy brings them to their
frame. XLA writes the few tokens of the text; where text and video share an array, it adds them after the video's.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from pallas_kernels.frame_order import Strips
from pallas_kernels.merge_heads import reference
from pallas_kernels.refs import Index, Ref
from pallas_kernels.targets import Target
from pallas_kernels.tpu_params import LANES, VMEM_LIMIT, interpret_params, needs_tpu

_BLOCK = 1024


def objection(
    *,
    backend: str,
    head_dim: int,
    lengths: tuple[int, ...] = (),
    video: int = 0,
    strips: Strips | None = None,
    **_: object,
) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_tpu(backend):
        return reason
    if head_dim != LANES:
        return f"head size {head_dim} is not {LANES}"
    if lengths and lengths[0] < video:
        return f"results of {lengths} tokens divide the {video} of the video"
    return strips.objection() if strips else None


def merge_heads(
    video: Float[Array, "B H S D"],
    text: Float[Array, "B H U D"],
    second: Bool[Array, "B H"] | None,
    *,
    lengths: tuple[int, ...],
    frames: int,
    target: Target,
) -> tuple[Float[Array, "B _ C"], ...]:
    """See `api.merge_heads`. Gradients are those of the reference."""
    launch = partial(_launch, lengths=lengths, frames=frames, target=target)
    plain = partial(reference.merge_heads, lengths=lengths, frames=frames)
    differentiable = jax.custom_vjp(launch)
    differentiable.defvjp(
        lambda *operands: (launch(*operands), operands),
        lambda operands, slopes: jax.vjp(plain, *operands)[1](slopes),
    )
    return differentiable(video, text, second)


def _launch(
    video: Array,
    text: Array,
    second: Array | None,
    *,
    lengths: tuple[int, ...],
    frames: int,
    target: Target,
) -> tuple[Array, ...]:
    first, *others = lengths
    count = sum(lengths) - text.shape[2]
    if frames:
        assert second is not None  # `api` checks it
        merged = _both_orders(video, second, Strips(frames, count // frames), first, target)
    else:
        merged = _first_order(video, count, first, target)
    behind, *rest = reference.merge_heads(
        text, text[:, :, :0], None, lengths=(first - count, *others), frames=0
    )
    if first > count:
        merged = jax.lax.dynamic_update_slice(merged, behind, (0, count, 0))
    return merged, *rest


def _first_order(x: Array, count: int, rows: int, target: Target) -> Array:
    samples, heads, length, size = x.shape
    block = min(_BLOCK, -(-length // 16) * 16)
    return pl.pallas_call(
        _copy,
        out_shape=jax.ShapeDtypeStruct((samples, rows, heads * size), x.dtype),
        grid=(samples, pl.cdiv(count, block), heads),
        in_specs=[pl.BlockSpec((None, None, block, size), lambda b, i, h: (b, h, i, 0))],
        out_specs=pl.BlockSpec((None, block, size), lambda b, i, h: (b, i, h)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3, vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret_params(target),
        name="merge_heads",
    )(x)


def _copy(x: Ref, out: Ref) -> None:
    out[...] = x[...]


def _both_orders(x: Array, second: Array, strips: Strips, rows: int, target: Target) -> Array:
    samples, heads, _, size = x.shape

    def whole(i: Array, b: Array, h: Array) -> tuple[Array, Array, Array, int]:
        return b, h, pl.multiple_of(_first_position(i, strips) * strips.frames, 8), 0

    return pl.pallas_call(
        partial(_kernel, strips=strips),
        out_shape=jax.ShapeDtypeStruct((samples, rows, heads * size), x.dtype),
        grid=(strips.blocks, samples, heads),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec(
                (pl.Squeezed(), pl.Squeezed(), pl.Element(strips.rows), pl.Element(size)), whole
            ),
        ],
        out_specs=pl.BlockSpec(memory_space=pltpu.HBM),
        scratch_shapes=[
            pltpu.VMEM((2, strips.rows, size), x.dtype),
            pltpu.VMEM((strips.rows, size), jnp.float32),
            pltpu.SemaphoreType.DMA((2,)),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret_params(target),
        name="merge_heads",
    )(second.astype(jnp.int32).reshape(-1), x)


def _first_position(i: Index, strips: Strips) -> Array:
    """Where the strips of a block begin in a frame."""
    return jnp.minimum(i * strips.width, strips.positions - strips.width)


def _kernel(
    second: Ref, x: Ref, out: Ref, buffer: Ref, wide: Ref, semaphores: Ref, *, strips: Strips
) -> None:
    """Write a block while the next one is prepared; nothing is under way between two blocks of positions."""
    sample, head, heads = pl.program_id(1), pl.program_id(2), pl.num_programs(2)
    number, count = sample * heads + head, pl.num_programs(1) * heads
    begin = _first_position(pl.program_id(0), strips)
    slot, size = jax.lax.rem(number, 2), x.shape[1]
    columns = pl.ds(pl.multiple_of(head * size, size), size)

    def written(slot: Index) -> None:
        # Whatever the order was: as many bytes as a block has.
        to = out.at[0, pl.ds(0, strips.rows), pl.ds(0, size)]
        pltpu.make_async_copy(buffer.at[slot], to, semaphores.at[slot]).wait()

    def write(start: Array, at: int, rows: int) -> None:
        to = out.at[sample, pl.ds(pl.multiple_of(start, 8), rows), columns]
        pltpu.make_async_copy(buffer.at[slot, pl.ds(at, rows)], to, semaphores.at[slot]).start()

    pl.when(number >= 2)(lambda: written(slot))

    @pl.when(second[number] == 0)
    def in_first_order() -> None:
        buffer[slot] = x[...]
        write(begin * strips.frames, 0, strips.rows)

    @pl.when(second[number] != 0)
    def in_second_order() -> None:
        wide[...] = x[...].astype(jnp.float32)  # only 32-bit rows can be read with a stride
        for t in range(strips.frames):
            at = t * strips.width
            frame = wide[pl.ds(t, strips.width, stride=strips.frames)]
            buffer[slot, pl.ds(at, strips.width)] = frame.astype(x.dtype)
            write(t * strips.positions + begin, at, strips.width)

    @pl.when(number == count - 1)
    def last() -> None:
        pl.when(count > 1)(lambda: written(1 - slot))
        written(slot)
