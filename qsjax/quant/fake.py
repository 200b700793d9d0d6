"""Quantized layers in floating point, differentiable: what calibration trains, with the function of `linear`'s layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.quant.quantizer import fake_tokens, fake_weight
from qsjax.quant.recipe import Precision
from qsjax.quant.rotation import rotate
from qsjax.quant.sites import Transform


class FakeLinear(nnx.Module):
    """fake_tokens(rotate(x / c)) fake_weight(W) + b, everything in front of the matmul done here and now.

    Args:
        kernel: [in, out], already multiplied by the inverse of the transform.
        bias: None where there is none.
        transform: of the input, all of it: at run time a part is merged elsewhere.
        precision: 16 bits change nothing.
        weight_clip: of each output channel.
        activation_clip: of all tokens.
        branch: [K, 1] and [1, N], a correction from the input as it comes.
    """

    def __init__(
        self,
        kernel: Float[Array, "K N"],
        bias: Float[Array, " N"] | None,
        *,
        transform: Transform,
        precision: Precision,
        weight_clip: Any = 1.0,
        activation_clip: Any = 1.0,
        branch: tuple[Array, Array] | None = None,
    ) -> None:
        self.branch = nnx.data(branch)
        self.transform = nnx.data(transform)
        self.precision, self.activation_clip = precision, activation_clip
        self.kernel = nnx.Param(
            fake_weight(kernel, precision.weights, weight_clip, group=precision.group)
        )
        self.bias = nnx.data(None if bias is None else nnx.Param(bias))

    def __call__(self, x: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
        """Transform, quantize, multiply; sums are float32, the result has x's dtype."""
        smoothing, rotation = self.transform
        given = x
        if smoothing is not None:
            x = (x / smoothing.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
        x = fake_tokens(rotate(x, rotation), self.precision.activations, self.activation_clip)
        y = jnp.matmul(x, self.kernel[...].astype(x.dtype), preferred_element_type=jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))
        if self.branch is not None:
            into, out = (part.astype(x.dtype) for part in self.branch)
            y = y + jnp.matmul(jnp.matmul(given, into), out).astype(jnp.float32)
        return y.astype(x.dtype)


class FakeJoinedLinear(nnx.Module):
    """A single block's second layer; the two halves of its input are quantized apart."""

    def __init__(self, attention: FakeLinear, mlp: FakeLinear) -> None:
        self.attention, self.mlp = attention, mlp

    def __call__(self, joined: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
        """Attention output and GELU, side by side."""
        width = self.attention.kernel.shape[0]
        return self.attention(joined[..., :width]) + self.mlp(joined[..., width:])


def clip_of(logit: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """A learned clip, sigmoid(logit), between 0 and 1 (FlatQuant, arXiv:2410.09426)."""
    return jax.nn.sigmoid(logit)
