"""Plain XLA, any backend: a reduction for the norm and one for the largest value, with everything else fused into them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import quantize
from pallas_kernels.activations import Activation, activate
from pallas_kernels.quantize_tokens.reference import Norm


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
    """Integers and scales; the scales are differentiable."""
    groups, channels = gain.shape
    y = activate(x.reshape(groups, -1, channels).astype(jnp.float32), activation)
    if norm == "layer":
        mean = y.mean(axis=2, keepdims=True)
        variance = jnp.square(y - mean).mean(axis=2, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + epsilon)
    y = (y * gain[:, None] + offset[:, None]).reshape(x.shape)
    if rotation is not None:
        parts = y.reshape(-1, len(rotation)).astype(rotation.dtype)
        y = jnp.matmul(parts, rotation, preferred_element_type=jnp.float32).reshape(x.shape)
    return quantize(y, limit, clip)
