"""Storage of a cached tensor between refreshes: floats, or 8-bit or 4-bit integers with a scale per token and head.

At 720x1280 and 129 frames, the cache of a layer has 365 million values; sixty layers take 44 GB in bfloat16 (QuantSparse,
section 3.3).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int32

from pallas_kernels import absmax
from qsjax.config import nearest
from qsjax.errors import InputError

BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
"""Store -> bytes per value; integer stores take 4 more bytes per token and head for the scale."""


class Stored(NamedTuple):
    """A stored tensor [B, S, H, D]. Its layout is head by head, as kernels read it: else XLA would transpose the whole cache before
    the first layer.

    Attributes:
        values: floats or int8 [B, H, S, D]. int4 packs two channels into a byte, [B, H, S, D/2]: channel d in the low half,
            d + D/2 in the high half. Words pack four bytes into an int32, [B, H, S/4, ...]: token s in the lowest byte, then
            s + S/4, s + S/2, s + 3S/4.
        scale: scale of integers, float32 [B, H, S]; None for floats.
    """

    values: Array
    scale: Array | None = None


def store(x: Float[Array, "B S H D"], kind: str, *, words: bool = False) -> Stored:
    """Store a tensor; integers are rounded to nearest and scaled by the largest magnitude of each token and head.

    Args:
        x: the tensor, in any float dtype.
        kind: a key of `BYTES`.
        words: pack integers into int32 words. On TPU, XLA would copy a whole int8 array from the host to fetch a slice of it.

    Raises:
        InputError: no such store, int4 with an odd number of channels, or words if the number of tokens is not a multiple of 4.
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
    """Unpack a stored tensor for attention: values [B, S, H, D], floats or int8, and the scale."""
    values = stored.values
    if values.dtype == jnp.int32:
        # Shifting left and back extracts one byte with its sign.
        parts = [((values << up) >> 24).astype(jnp.int8) for up in (24, 16, 8, 0)]
        values = jnp.concatenate(parts, axis=2)
    if kind == "int4":
        # Shifting left and back keeps the sign of the lower half.
        values = jnp.concatenate([(values << 4) >> 4, values >> 4], axis=-1)
    return Stored(values.swapaxes(1, 2), stored.scale)


def restored(stored: Stored, kind: str) -> Float[Array, "B S H D"]:
    """The tensor in float32, with the scale applied."""
    values, scale = opened(stored, kind)
    values = values.astype(jnp.float32)
    return values if scale is None else values * scale.swapaxes(1, 2)[..., None]


def empty(kind: str, shape: tuple[int, int, int, int], *, words: bool = False) -> Stored:
    """Zeros of shape [B, S, H, D], in the layout of `store`."""
    check(kind, shape[1], shape[-1], words)
    batch, tokens, heads, channels = shape
    if kind in ("float32", "bfloat16"):
        return Stored(jnp.zeros((batch, heads, tokens, channels), kind))
    stored = channels // 2 if kind == "int4" else channels
    scale = jnp.full((batch, heads, tokens), absmax.SMALLEST, jnp.float32)
    values = jnp.zeros((batch, heads, tokens, stored), jnp.int8)
    return Stored(_words(values) if words else values, scale)


def _words(values: Int8[Array, "B H S D"]) -> Int32[Array, "B H S4 D"]:
    b0, b1, b2, b3 = jnp.split(values.astype(jnp.int32), 4, axis=2)
    return (b0 & 255) | ((b1 & 255) << 8) | ((b2 & 255) << 16) | (b3 << 24)


def check(kind: str, tokens: int, channels: int, words: bool) -> None:
    """Check that a tensor can be kept in a store.

    Raises:
        InputError: as `store`.
    """
    if kind not in BYTES:
        raise InputError(f"no store {kind!r}; {nearest(kind, BYTES)}")
    if kind == "int4" and channels % 2:
        raise InputError(f"int4 takes an even number of channels, not {channels}; take int8")
    if words and tokens % 4:
        raise InputError(
            f"a cache on the host takes its tokens by fours, not {tokens}; take blocks of a multiple of four"
        )
