"""The two norms of the text encoders, with statistics in float32 whatever the model's dtype."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class RMSNorm(nnx.Module):
    """LLaMA's norm: x / rms(x), rounded to the input's dtype, then times `scale`.

    The rounding comes before the scale, as in transformers' `LlamaRMSNorm`; the other order differs in bfloat16.
    """

    def __init__(self, features: int, *, epsilon: float, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones((features,), dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Normalize each token; dtype in = dtype out."""
        wide = x.astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(power + self.epsilon)
        return normed.astype(x.dtype) * self.scale[None, None, :].astype(x.dtype)


class LayerNorm(nnx.Module):
    """CLIP's affine norm, everything in float32 up to the result, as PyTorch computes it.

    Two-pass variance: E[x^2] - E[x]^2 would lose the digits that parity with PyTorch needs.
    """

    def __init__(self, features: int, *, epsilon: float, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones((features,), dtype))
        self.bias = nnx.Param(jnp.zeros((features,), dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Normalize each token; dtype in = dtype out."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (p[None, None, :].astype(jnp.float32) for p in (self.scale, self.bias))
        return (normed * scale + bias).astype(x.dtype)
