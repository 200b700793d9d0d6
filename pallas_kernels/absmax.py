"""Symmetric integers with an absmax scale: the numerical policy of all that is quantized row by row.

With b bits and Q = 2^(b-1) - 1, and with a the largest absolute value of a row, at least `SMALLEST`:

    scale    = clip a / Q
    integers = round(x * (Q / (clip a))), to even, limited to -Q - 1 .. Q

A row with a NaN has the scale NaN, and one with an infinity an infinite scale, so that neither becomes finite numbers unseen.

`clip`, below 1, gives up the largest values for a finer grid. Everything is float32. Activations (`quantize_tokens`), int8
scores and the cache of `qsjax.residual` follow it. Weights differ in the order of the operations: `qsjax.quant.quantizer`
and `qsjax.text.int8` say how, and why.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int32

SMALLEST = 1e-30
"""Largest absolute value assumed for a row of zeros: finite when divided by, and zero times it is zero."""


def limit(bits: int) -> int:
    """Q, the largest integer of `bits`."""
    return 2 ** (bits - 1) - 1


def largest(x: Float[Array, "*B C"]) -> Float[Array, "*B 1"]:
    """The largest absolute value of each row, at least `SMALLEST`; NaN if one of them is."""
    found = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), SMALLEST)
    # Some backends' maximum passes over a NaN.
    return jnp.where(jnp.isnan(x).any(axis=-1, keepdims=True), jnp.nan, found)


def magnitude(x: Float[Array, "*B"]) -> Int32[Array, "*B"]:
    """The bits of |x|, which are ordered as |x| is, and in which a NaN is larger than all numbers.

    Kernels keep the largest of these: whether their maximum of floats passes over a NaN depends on the backend.
    """
    return jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)


def of_magnitudes(kept: Int32[Array, "M C"]) -> Float[Array, " M"]:
    """The largest of each row of magnitudes as a number, at least `SMALLEST`; NaN if one of them is not finite."""
    x = jax.lax.bitcast_convert_type(kept, jnp.float32)
    return jnp.maximum(x.max(axis=1), SMALLEST) + (x * 0).sum(axis=1)


def quantize(
    x: Float[Array, "*B C"], top: int, clip: Float[Array, ""] | float | None = None
) -> tuple[Int8[Array, "*B C"], Float[Array, "*B"]]:
    """Integers, and the float32 scale of each row.

    Args:
        x: rows, of any float dtype.
        top: Q.
        clip: share of the range that the integers cover; None is all of it, where no integer can exceed Q.
    """
    x = x.astype(jnp.float32)
    covered = largest(x)
    if clip is None:
        integers = jnp.round(x * (top / covered))
    else:
        covered = covered * clip
        integers = jnp.clip(jnp.round(x * (top / covered)), -top - 1, top)
    return integers.astype(jnp.int8), covered[..., 0] / top
