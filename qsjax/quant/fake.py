"""Quantized layers in floating point, differentiable: what calibration trains, with the function of `linear`'s layers.

A block of the real model has 21,504 channels a token between its layers. Everything that a layer does to its input (GELU,
transform, rounding) is recomputed in the backward pass, some tokens at a time: only the layers' inputs are kept.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from qsjax.quant.quantizer import fake_tokens, fake_weight
from qsjax.quant.recipe import Precision
from qsjax.quant.rotation import rotate
from qsjax.quant.sites import Transform

_TOKENS = 2048
"""Tokens at a time; fewer are not worth a loop."""


class Deferred(NamedTuple):
    """A layer's input, `function(x)`, which the layer itself computes, a part of the tokens at a time."""

    function: Callable[[Array], Array]
    x: Array


@runtime_checkable
class Half(Protocol):
    """A layer that computes its activation itself."""

    def activated_input(self, hidden: Float[Array, "B L C"]) -> Deferred:
        """What to call it with for GELU(hidden)."""

    def __call__(self, x: Array | Deferred) -> Array:
        """Its output."""


Watch = Callable[["FakeLinear", Array | Deferred], None]


class FakeLinear(nnx.Module):
    """fake_tokens(rotate(x / c)) fake_weight(W) + b, with all that comes before the matmul computed in the layer.

    Args:
        kernel: [in, out], already multiplied by the inverse of the transform.
        bias: None where there is none.
        transform: of the input, whole, where the packed layer's is partly merged into other weights.
        precision: 16 bits change nothing.
        weight_clip: of each output channel.
        activation_clip: of all tokens.
        branch: [K, 1] and [1, N], a correction computed from the untransformed input.
    """

    def __init__(
        self,
        kernel: Float[Array, "K N"],
        bias: Float[Array, " N"] | None,
        *,
        transform: Transform,
        precision: Precision,
        weight_clip: Array | float = 1.0,
        activation_clip: Array | float = 1.0,
        branch: tuple[Array, Array] | None = None,
    ) -> None:
        self.branch = nnx.data(branch)
        self.transform = nnx.data(transform)
        self.precision, self.activation_clip = precision, activation_clip
        self.kernel = nnx.Param(
            fake_weight(kernel, precision.weights, weight_clip, group=precision.group)
        )
        self.bias = nnx.data(None if bias is None else nnx.Param(bias))
        self.watch: Watch | None = nnx.static(None)

    def activated_input(self, hidden: Float[Array, "B L C"]) -> Deferred:
        """GELU, which the layer computes itself."""
        return Deferred(partial(jax.nn.gelu, approximate=True), hidden)

    def __call__(self, x: Float[Array, "*B K"] | Deferred) -> Float[Array, "*B N"]:
        """Transform, quantize, multiply; sums are float32, the result has x's dtype.

        Args:
            x: [..., K], or what `activated_input` has returned.
        """
        if self.watch is not None:
            self.watch(self, x)
        if isinstance(x, Deferred):
            function, hidden = x
            return in_parts(lambda part: self._multiply(function(part)), hidden)
        return in_parts(self._multiply, x) if x.ndim == 3 else self._multiply(x)

    def gram(
        self, x: Float[Array, "B L C"] | Deferred, valid: Bool[Array, "B L"]
    ) -> Float[Array, "K K"]:
        """X^T X of what the matmul gets, over the tokens that are there; float32, some tokens at a time."""
        function, hidden = x if isinstance(x, Deferred) else (lambda part: part, x)
        batch, tokens, channels = hidden.shape
        count = -(-tokens // _TOKENS)
        rows = -(-tokens // count)
        padding = ((0, 0), (0, count * rows - tokens))
        parts = jnp.pad(hidden, (*padding, (0, 0))).reshape(batch * count, rows, channels)
        keep = jnp.pad(valid, padding).reshape(batch * count, rows)

        def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            tokens, keep = part
            tokens = self._quantized_input(function(tokens))
            tokens = tokens * keep[:, None].astype(tokens.dtype)
            # Products of bfloat16 are exact in float32: they need not be made of float32, which takes several times as long.
            product = jnp.matmul(
                tokens.T, tokens, precision="highest", preferred_element_type=jnp.float32
            )
            return total + product, None

        size = self.kernel.shape[0]
        total = jnp.zeros((size, size), jnp.float32)
        return jax.lax.scan(add, total, (parts, keep.astype(jnp.float32)))[0]

    def _quantized_input(self, x: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
        smoothing, rotation = self.transform
        if smoothing is not None:
            divisor = smoothing.reshape((1,) * (x.ndim - 1) + (-1,))
            x = (x.astype(jnp.float32) / divisor).astype(x.dtype)
        return fake_tokens(rotate(x, rotation), self.precision.activations, self.activation_clip)

    def _multiply(self, x: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
        plain, x = x, self._quantized_input(x)
        # Cast here, not once for all parts: gradients of parts are summed in float32.
        y = jnp.matmul(x, self.kernel[...].astype(x.dtype), preferred_element_type=jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))
        if self.branch is not None:
            into, out = (part.astype(x.dtype) for part in self.branch)
            y = y + jnp.matmul(jnp.matmul(plain, into), out).astype(jnp.float32)
        return y.astype(x.dtype)


class FakeJoinedLinear(nnx.Module):
    """A single block's second layer; the two halves of its input are quantized separately.

    Args:
        attention, mlp: a `FakeLinear` each, or layers that are called as it is.
    """

    def __init__(self, attention: Half, mlp: Half) -> None:
        self.attention, self.mlp = attention, mlp

    def joined_input(
        self, attended: Float[Array, "B L C"], hidden: Float[Array, "B L F"]
    ) -> tuple[Array, Deferred]:
        """Both halves; the MLP's layer computes the GELU."""
        return attended, self.mlp.activated_input(hidden)

    def __call__(self, joined: tuple[Array, Deferred]) -> Float[Array, "B L N"]:
        """attention + mlp, of what `joined_input` returns."""
        attended, hidden = joined
        return self.attention(attended) + self.mlp(hidden)


def clip_of(logit: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """A learned clip, sigmoid(logit), between 0 and 1 (FlatQuant, arXiv:2410.09426)."""
    return jax.nn.sigmoid(logit)


def in_parts(function: Callable[[Array], Array], x: Float[Array, "B L K"]) -> Float[Array, "B L N"]:
    """`function` of all tokens, recomputed in the backward pass; part by part where there are many."""
    batch, tokens, channels = x.shape
    if tokens <= _TOKENS:
        return function(x)
    count = -(-tokens // _TOKENS)
    rows = -(-tokens // count)
    padded = jnp.pad(x, ((0, 0), (0, count * rows - tokens), (0, 0)))
    parts = padded.reshape(batch, count, rows, channels).swapaxes(0, 1)
    made = jax.lax.map(jax.checkpoint(function), parts).swapaxes(0, 1)
    return made.reshape(batch, count * rows, -1)[:, :tokens]
