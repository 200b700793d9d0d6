"""Norms over the last axis, with statistics in float32 whatever the dtype of the input."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def standardized(x: Float[Array, "*B C"], epsilon: float) -> Float[Array, "*B C"]:
    """(x - mean) / sqrt(variance + epsilon), the LayerNorm without its affine part, float32.

    The biased variance is taken from centred values: E[x^2] - E[x]^2 would lose the digits that parity with PyTorch needs.
    The caller rounds the result: HunyuanVideo's DiT before scale and shift, CLIP after them.
    """
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


class RMSNorm(nnx.Module):
    """x / rms(x), rounded to the input's dtype, then times `scale`.

    The rounding comes before the scale, as in HunyuanVideo and in transformers' `LlamaRMSNorm`; the other order differs in
    bfloat16.

    Args:
        features: length of the last axis.
        epsilon: added to the mean square.
        dtype: of `scale`.
    """

    def __init__(self, features: int, *, epsilon: float, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones(features, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Normalize the last axis."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype)
        return normed * self.scale.reshape((1,) * (x.ndim - 1) + (-1,))
