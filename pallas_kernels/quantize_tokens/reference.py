"""The meaning of the operation, in a few lines of float32."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import quantize
from pallas_kernels.activations import Activation, activate

Norm = Literal["none", "layer"]
NORMS: tuple[Norm, ...] = get_args(Norm)
"""Without a norm, or LayerNorm without weights."""


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
) -> tuple[Int8[Array, "M C"], Float[Array, " M"]]:
    """Integers -limit - 1 .. limit and scales; the rotation, too, is applied in float32."""
    y = activate(x.astype(jnp.float32), activation)
    if norm == "layer":
        y = y - y.mean(axis=1, keepdims=True)
        y = y / jnp.sqrt(jnp.square(y).mean(axis=1, keepdims=True) + epsilon)
    repeats = len(y) // len(gain)
    y = y * jnp.repeat(gain, repeats, axis=0) + jnp.repeat(offset, repeats, axis=0)
    if rotation is not None:
        parts = y.reshape(len(y), -1, len(rotation))
        y = jnp.matmul(parts, rotation.astype(jnp.float32), precision="highest").reshape(y.shape)
    return quantize(y, limit, clip)
