"""The norms of the DiT, with statistics in float32."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

EPSILON = 1e-6


def layer_norm(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """LayerNorm without affine parameters; biased variance, computed in float32 from centred values."""
    centred = x.astype(jnp.float32)
    centred = centred - centred.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + EPSILON)).astype(x.dtype)


def modulate(
    x: Float[Array, "B L D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]
) -> Float[Array, "B L D"]:
    """Adaptive LayerNorm: LN(x) * (1 + scale) + shift, the same for all tokens of a sample."""
    return layer_norm(x) * (1 + scale[:, None, :]) + shift[:, None, :]


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the head size; statistics in float32, weight applied in the input dtype."""

    def __init__(self, size: int, *, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(size, dtype))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalize the last axis."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean_square + EPSILON)).astype(x.dtype)
        return normed * self.scale.reshape((1,) * (x.ndim - 1) + (-1,))


class LayerNorm(nnx.Module):
    """Affine LayerNorm of the token refiner."""

    def __init__(self, size: int, *, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.bias = nnx.Param(jnp.zeros(size, dtype))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Normalize the last axis, then scale and shift it."""
        return layer_norm(x) * self.scale[None, None] + self.bias[None, None]
