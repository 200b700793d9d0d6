"""Plain XLA, any backend: a reduction for the norm, one for the largest value, and what lies between fused into them."""

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
    """Integers and scales; the scales are differentiable."""
    groups, channels = gain.shape
    y = x.reshape(groups, -1, channels).astype(jnp.float32)
    if activation == "gelu_tanh":
        y = jax.nn.gelu(y, approximate=True)
    if norm == "layer":
        mean = y.mean(axis=2, keepdims=True)
        variance = jnp.square(y - mean).mean(axis=2, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + epsilon)
    y = (y * gain[:, None] + offset[:, None]).reshape(x.shape)
    if rotation is not None:
        parts = y.reshape(-1, len(rotation)).astype(rotation.dtype)
        y = jnp.matmul(parts, rotation, preferred_element_type=jnp.float32).reshape(x.shape)
    return quantize(y, limit, clip)
