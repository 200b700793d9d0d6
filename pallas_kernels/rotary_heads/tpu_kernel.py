"""The kernel: one block of tokens of one head."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.frame_order import Strips
from pallas_kernels.refs import Index, Ref


def kernel(
    *refs: Ref, names: tuple[str, ...], heads: int, epsilon: float, strips: Strips | None
) -> None:
    """Norm and rotate queries and keys, and copy values, in the order of tokens that the head wants."""
    ref = dict(zip(names, refs, strict=True))
    block, size = ref["q"].shape
    lane = jax.lax.broadcasted_iota(jnp.int32, (block, size), 1)
    even = jax.lax.bitwise_and(lane, 1) == 0
    number = pl.program_id(1) * heads + pl.program_id(2)

    @pl.when(number == 0)
    def tables() -> None:
        # The sign belongs to the partner that a channel gets.
        for name in ("sin", "second_sin") if strips else ("sin",):
            sin = ref[name][...]
            ref[name.replace("sin", "signed_sin")][...] = jnp.where(even, -sin, sin)

    def prepared(x: Array, scale: Array, order: str) -> Array:
        dtype, x = ref["q"].dtype, x.astype(jnp.float32)
        mean_square = jnp.square(x).sum(axis=1, keepdims=True) / size
        x = (x * jax.lax.rsqrt(mean_square + epsilon)).astype(dtype).astype(jnp.float32)
        x = (x * scale).astype(dtype).astype(jnp.float32)
        partner = jnp.where(even, pltpu.roll(x, size - 1, 1), pltpu.roll(x, 1, 1))
        x = x * ref[f"{order}cos"][...] + partner * ref[f"{order}signed_sin"][...]
        return x.astype(dtype)

    def in_first_order() -> None:
        for name in ("q", "k"):
            ref[f"{name}_out"][...] = prepared(ref[name][...], ref[f"{name}_scale"][...], "")
        ref["v_out"][...] = ref["v"][...]

    if strips is None:
        return in_first_order()
    fetch = partial(_fetch, ref, strips, heads)
    following, second = number + 1, ref["second"]
    count = pl.num_programs(1) * heads
    pl.when((number == 0) & (second[0] != 0))(lambda: fetch(number))
    pl.when((following < count) & (second[jnp.minimum(following, count - 1)] != 0))(
        lambda: fetch(following)
    )
    pl.when(second[number] == 0)(in_first_order)

    @pl.when(second[number] != 0)
    def in_second_order() -> None:
        slot = jax.lax.rem(number, 2)
        for part in range(3):
            # As many bytes as all strips of a part have.
            whole = ref["projected"].at[0, pl.ds(0, block), pl.ds(0, size)]
            strip, semaphore = ref["strips"].at[slot, part], ref["semaphores"].at[slot]
            pltpu.make_async_copy(whole, strip, semaphore).wait()
        for part, name in enumerate(("q", "k")):
            x = _interleaved(ref, strips, slot, part)
            ref[f"{name}_out"][...] = prepared(x, ref[f"{name}_scale"][...], "second_")
        ref["v_out"][...] = _interleaved(ref, strips, slot, 2).astype(ref["v"].dtype)


def _first_position(strips: Strips) -> tuple[Array, Array]:
    """Of this program's block: where its strips begin in a frame, and how much earlier that is than in even steps."""
    begin = pl.program_id(0) * strips.width
    inside = jnp.minimum(begin, strips.positions - strips.width)
    return inside, begin - inside


def _fetch(ref: dict[str, Ref], strips: Strips, heads: int, number: Index) -> None:
    """Begin copying the strips of q, k and v of a head of a sample."""
    inside, _ = _first_position(strips)
    sample, head = jax.lax.div(number, heads), jax.lax.rem(number, heads)
    slot, size = jax.lax.rem(number, 2), ref["q"].shape[1]

    def frame(t: Array, carry: None) -> None:
        rows = pl.ds(pl.multiple_of(t * strips.positions + inside, 8), strips.width)
        for part in range(3):
            columns = pl.ds(pl.multiple_of((part * heads + head) * size, size), size)
            to = pl.ds(pl.multiple_of(t * strips.width, strips.width), strips.width)
            pltpu.make_async_copy(
                ref["projected"].at[sample, rows, columns],
                ref["strips"].at[slot, part, to],
                ref["semaphores"].at[slot],
            ).start()
        return carry

    jax.lax.fori_loop(0, strips.frames, frame, None)


def _interleaved(ref: dict[str, Ref], strips: Strips, slot: Index, part: int) -> Array:
    """All frames of a position, then of the next one, float32: only 32-bit rows can be written with a stride."""
    wide, width = ref["wide"], strips.width
    for t in range(strips.frames):
        strip = ref["strips"][slot, part, t * width : (t + 1) * width]
        wide[pl.ds(t, width, stride=strips.frames)] = strip.astype(jnp.float32)
    _, earlier = _first_position(strips)
    begin = pl.multiple_of(earlier * strips.frames, 8) if strips.repeated else 0
    return wide[pl.ds(begin, strips.rows)]
