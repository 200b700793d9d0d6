"""Quantized layers in floating point, differentiable: what calibration trains, with the function of `linear`'s layers.

A block of the real model has 21,504 channels a token between its layers. Everything that a layer does to its input (GELU,
transform, rounding) is made again in the backward pass, some tokens at a time: what is kept is what the layers hand over.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.quant.quantizer import fake_tokens, fake_weight
from qsjax.quant.recipe import Precision
from qsjax.quant.rotation import rotate
from qsjax.quant.sites import Transform

_TOKENS = 2048
"""Tokens at a time; fewer are not worth a loop."""


class _Later(NamedTuple):
    """A layer's input that the layer itself makes, token by token, from `x`."""

    make: Callable[[Array], Array]
    x: Array


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

    def activated_input(self, hidden: Float[Array, "B L C"]) -> Any:
        """GELU is the layer's own affair."""
        return _Later(partial(jax.nn.gelu, approximate=True), hidden)

    def __call__(self, x: Any) -> Float[Array, "*B N"]:
        """Transform, quantize, multiply; sums are float32, the result has x's dtype.

        Args:
            x: [..., K], or what `activated_input` has returned.
        """
        if isinstance(x, _Later):
            make, x = x
            return _in_parts(lambda part: self._multiply(make(part)), x)
        return _in_parts(self._multiply, x) if x.ndim == 3 else self._multiply(x)

    def _multiply(self, x: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
        smoothing, rotation = self.transform
        given = x
        if smoothing is not None:
            divisor = smoothing.reshape((1,) * (x.ndim - 1) + (-1,))
            x = (x.astype(jnp.float32) / divisor).astype(x.dtype)
        x = fake_tokens(rotate(x, rotation), self.precision.activations, self.activation_clip)
        # Cast here, not once for all parts: gradients of parts are summed in float32.
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

    def joined_input(self, attended: Float[Array, "B L C"], hidden: Float[Array, "B L F"]) -> Any:
        """Both halves apart, GELU for the layer to do."""
        return attended, self.mlp.activated_input(hidden)

    def __call__(self, joined: tuple[Any, Any]) -> Float[Array, "B L N"]:
        """Of what `joined_input` returns."""
        attended, hidden = joined
        return self.attention(attended) + self.mlp(hidden)


def clip_of(logit: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """A learned clip, sigmoid(logit), between 0 and 1 (FlatQuant, arXiv:2410.09426)."""
    return jax.nn.sigmoid(logit)


def _in_parts(
    function: Callable[[Array], Array], x: Float[Array, "B L K"]
) -> Float[Array, "B L N"]:
    """`function` of all tokens, made again in the backward pass; part by part where there are many."""
    batch, tokens, channels = x.shape
    if tokens <= _TOKENS:
        return function(x)
    count = -(-tokens // _TOKENS)
    rows = -(-tokens // count)
    padded = jnp.pad(x, ((0, 0), (0, count * rows - tokens), (0, 0)))
    parts = padded.reshape(batch, count, rows, channels).swapaxes(0, 1)
    made = jax.lax.map(jax.checkpoint(function), parts).swapaxes(0, 1)
    return made.reshape(batch, count * rows, -1)[:, :tokens]
