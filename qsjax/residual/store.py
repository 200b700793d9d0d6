"""How a cached tensor is kept between refreshes: floats, 8 bits or 4, with a scale for every token of every head.

At 720x1280 and 129 frames a layer's cache is 365 million values, sixty layers' 44 GB in bfloat16 (QuantSparse, section 3.3).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int32

from pallas_kernels import absmax
from qsjax.config import nearest
from qsjax.errors import InputError

BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
"""Stores and bytes of a value; integers have 4 more for each token of each head."""


class Stored(NamedTuple):
    """A tensor [B, S, H, D] at rest: head by head, as kernels read it. In another order the whole cache would be transposed before the first layer.

    Attributes:
        values: floats or int8 [B, H, S, D]; of int4 two channels in a byte, [B, H, S, D/2]: channel d low, d + D/2 high. As
            words four bytes in an int32, [B, H, S/4, ...]: token s lowest, then s + S/4, s + S/2, s + 3S/4.
        scale: of integers, float32 [B, H, S]; None for floats.
    """

    values: Any
    scale: Any = None


def store(x: Float[Array, "B S H D"], kind: str, *, words: bool = False) -> Stored:
    """Keep a tensor; integers are rounded to nearest, to the largest value of each token and head.

    Args:
        x: any float dtype.
        kind: a key of `BYTES`.
        words: integers as int32 words: XLA for TPU fetches slices of int8 arrays from the host by copying all of them first.

    Raises:
        InputError: no such store, int4 of an odd number of channels, or words of tokens that four does not divide.
    """
    check(kind, x.shape[1], x.shape[-1], words)
    if kind in ("float32", "bfloat16"):
        return Stored(x.swapaxes(1, 2).astype(kind))
    values, scale = absmax.quantize(x.swapaxes(1, 2), absmax.limit(4 if kind == "int4" else 8))
    if kind == "int4":
        low, high = jnp.split(values, 2, axis=-1)
        values = (low & 15) | (high << 4)
    return Stored(_words(values) if words else values, scale)


def opened(stored: Stored, kind: str) -> Stored:
    """What attention takes: values [B, S, H, D], floats or one int8 each, and the scale."""
    values = stored.values
    if values.dtype == jnp.int32:
        # Shifting left and back leaves one byte, with its sign.
        parts = [((values << up) >> 24).astype(jnp.int8) for up in (24, 16, 8, 0)]
        values = jnp.concatenate(parts, axis=2)
    if kind == "int4":
        # Shifting left and back keeps the sign of the lower half.
        values = jnp.concatenate([(values << 4) >> 4, values >> 4], axis=-1)
    return Stored(values.swapaxes(1, 2), stored.scale)


def restored(stored: Stored, kind: str) -> Float[Array, "B S H D"]:
    """Float32 values."""
    values, scale = opened(stored, kind)
    values = values.astype(jnp.float32)
    return values if scale is None else values * scale.swapaxes(1, 2)[..., None]


def empty(kind: str, shape: tuple[int, int, int, int], *, words: bool = False) -> Stored:
    """Zeros of shape [B, S, H, D], as `store` has them."""
    check(kind, shape[1], shape[-1], words)
    batch, tokens, heads, channels = shape
    if kind in ("float32", "bfloat16"):
        return Stored(jnp.zeros((batch, heads, tokens, channels), kind))
    stored = channels // 2 if kind == "int4" else channels
    scale = jnp.full((batch, heads, tokens), absmax.SMALLEST, jnp.float32)
    values = jnp.zeros((batch, heads, tokens, stored), jnp.int8)
    return Stored(_words(values) if words else values, scale)


def _words(values: Int8[Array, "B H S D"]) -> Int32[Array, "B H S4 D"]:
    one, two, three, four = jnp.split(values.astype(jnp.int32), 4, axis=2)
    return (one & 255) | ((two & 255) << 8) | ((three & 255) << 16) | (four << 24)


def check(kind: str, tokens: int, channels: int, words: bool) -> None:
    """Refuse a store that there is not.

    Raises:
        InputError: as in `store`.
    """
    if kind not in BYTES:
        raise InputError(f"no store {kind!r}; {nearest(kind, BYTES)}")
    if kind == "int4" and channels % 2:
        raise InputError(f"int4 takes an even number of channels, not {channels}; take int8")
    if words and tokens % 4:
        raise InputError(
            f"a cache on the host takes its tokens by fours, not {tokens}; take blocks of a multiple of four"
        )
