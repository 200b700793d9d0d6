"""The meaning of the operation, in a few lines of float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import quantize


def quantize_tokens(
    x: Float[Array, "M C"],
    gain: Float[Array, "G C"],
    offset: Float[Array, "G C"],
    rotation: Float[Array, "R R"] | None,
    clip: Float[Array, ""],
    *,
    norm: str,
    activation: str,
    limit: int,
    epsilon: float,
) -> tuple[Int8[Array, "M C"], Float[Array, " M"]]:
    """Integers -limit - 1 .. limit and scales; the rotation, too, is applied in float32."""
    y = x.astype(jnp.float32)
    if activation == "gelu_tanh":
        y = jax.nn.gelu(y, approximate=True)
    if norm == "layer":
        y = y - y.mean(axis=1, keepdims=True)
        y = y / jnp.sqrt(jnp.square(y).mean(axis=1, keepdims=True) + epsilon)
    repeats = len(y) // len(gain)
    y = y * jnp.repeat(gain, repeats, axis=0) + jnp.repeat(offset, repeats, axis=0)
    if rotation is not None:
        parts = y.reshape(len(y), -1, len(rotation))
        y = jnp.matmul(parts, rotation.astype(jnp.float32), precision="highest").reshape(y.shape)
    return quantize(y, limit, clip)
