"""The DiT's LayerNorms; unlike CLIP's they round to the input's dtype before scale and shift."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.layers.norms import standardized

EPSILON = 1e-6


def layer_norm(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """LayerNorm without affine parameters; computed in float32, in the input's dtype."""
    return standardized(x, EPSILON).astype(x.dtype)


def modulate(
    x: Float[Array, "B L D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]
) -> Float[Array, "B L D"]:
    """Adaptive LayerNorm: LN(x) * (1 + scale) + shift, the same for all tokens of a sample."""
    return layer_norm(x) * (1 + scale[:, None, :]) + shift[:, None, :]


class LayerNorm(nnx.Module):
    """Affine LayerNorm of the token refiner."""

    def __init__(self, size: int, *, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.bias = nnx.Param(jnp.zeros(size, dtype))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Normalize the last axis, then scale and shift it."""
        return layer_norm(x) * self.scale[None, None] + self.bias[None, None]
