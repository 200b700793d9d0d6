"""Uniform, symmetric quantizers, as integers and as floats with straight-through gradients.

The scales are those of `pallas_kernels.absmax`: one for an output channel of weights (or for a group of its inputs), one
for a token of activations, computed as it comes (QuantSparse, section 3.1). Both forms divide and round in the same order,
so that they agree bit for bit until a product is summed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import SMALLEST, largest, limit

UNQUANTIZED = 16
"""Bits that mean: left in floating point."""

_DEAD = 1e-15  # 1 / _DEAD^2 is a float32


def round_straight(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Round to even; the gradient is that of the identity (straight-through)."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def weight_scale(
    kernel: Float[Array, "K N"], bits: int, clip: Array | float = 1.0, *, group: int = 0
) -> Float[Array, "G N"]:
    """Scales of a matrix, float32, one row of them for every `group` input channels (0: for all).

    Args:
        kernel: [in, out].
        bits: 2 to 8.
        clip: of each output channel, [N], or of all.
        group: input channels that share a scale; divides K.
    """
    size = group or kernel.shape[0]
    peak = jnp.abs(kernel.astype(jnp.float32)).reshape(-1, size, kernel.shape[1]).max(axis=1)
    clip = jnp.asarray(clip, jnp.float32).reshape(1, -1)
    # Times 1/Q, not over Q: a compiler turns the division into this, and bits would depend on being compiled.
    return _alive(jnp.maximum(peak, SMALLEST) * clip * np.float32(1 / limit(bits)))


def quantize_weight(
    kernel: Float[Array, "K N"], bits: int, clip: Array | float = 1.0, *, group: int = 0
) -> tuple[Int8[Array, "K N"], Float[Array, "G N"]]:
    """Integers and scales of a matrix; the arguments are those of `weight_scale`."""
    scale = weight_scale(kernel, bits, clip, group=group)
    return _integers(kernel, scale, bits).astype(jnp.int8), scale


def fake_weight(
    kernel: Float[Array, "K N"], bits: int, clip: Array | float = 1.0, *, group: int = 0
) -> Float[Array, "K N"]:
    """What `quantize_weight` keeps of a matrix, float32, differentiable in the matrix and in `clip`."""
    if bits == UNQUANTIZED:
        return kernel
    scale = weight_scale(kernel, bits, clip, group=group)
    return _integers(kernel, scale, bits) * _spread(scale, kernel)


def fake_tokens(
    x: Float[Array, "*B C"], bits: int, clip: Array | float = 1.0
) -> Float[Array, "*B C"]:
    """What `pallas_kernels.quantize_tokens` keeps of activations, differentiable in them and in `clip`.

    Args:
        x: tokens, features last.
        bits: 2 to 8; 16 changes nothing.
        clip: of all tokens.
    """
    if bits == UNQUANTIZED:
        return x
    integers, scale = token_integers(x, bits, clip)
    return (integers * scale).astype(x.dtype)


def token_integers(
    x: Float[Array, "*B C"], bits: int, clip: Array | float = 1.0
) -> tuple[Float[Array, "*B C"], Float[Array, "*B 1"]]:
    """The integers of activations and the scale of each token, both float32 and differentiable; arguments as of `fake_tokens`."""
    wide, top = x.astype(jnp.float32), limit(bits)
    covered = _alive(largest(wide) * clip)
    return _limited(round_straight(wide * (top / covered)), top), covered / top


def _alive(scale: Array) -> Array:
    """The same; where all is zero without a gradient, since that of 1 / SMALLEST is not finite."""
    return jnp.where(scale > _DEAD, scale, jax.lax.stop_gradient(scale))


def _integers(kernel: Array, scale: Array, bits: int) -> Array:
    # Likewise times 1/scale: where weights are bfloat16, many ratios lie exactly between two integers.
    top, inverse = limit(bits), _spread(1 / scale, kernel)
    return _limited(round_straight(kernel.astype(jnp.float32) * inverse), top)


def _limited(integers: Array, top: int) -> Array:
    """Limited to -Q - 1 .. Q; the gradient passes at the ends too, which at 4 bits many weights have (`jnp.clip` halves it)."""
    inside = (integers >= -top - 1) & (integers <= top)
    return jnp.where(inside, integers, jax.lax.stop_gradient(jnp.clip(integers, -top - 1, top)))


def _spread(scale: Array, kernel: Array) -> Array:
    """A scale for every row of the matrix."""
    return jnp.repeat(scale, kernel.shape[0] // scale.shape[0], axis=0)
