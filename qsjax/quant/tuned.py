"""Packed layers whose scales can be trained: the integers stay, everything around them is floating point and differentiable."""

from collections.abc import Iterator
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels import unpack
from qsjax.params import dotted
from qsjax.quant.fake import Deferred, FakeJoinedLinear, in_parts
from qsjax.quant.linear import LEAVES, JoinedLinear, QuantizedLinear, packed_weight
from qsjax.quant.quantizer import UNQUANTIZED, token_integers
from qsjax.quant.rotation import Rotation, rotate

Module = TypeVar("Module", bound=nnx.Module)


class TunedLinear(nnx.Module):
    """The function of a `QuantizedLinear`, with gradients in its input, `scale`, `bias` and `clip`.

    Activations are rounded with straight-through gradients, and both scales multiply the product, as in the kernel: no gradient
    of the weights themselves is ever made. What comes before the product is recomputed in the backward pass, some tokens at a
    time.

    Args:
        layer: whose leaves it takes.

    Raises:
        TypeError: a layer with a branch beside it, which is not tuned.
    """

    packed: nnx.Param
    low_bits: nnx.Param | None
    scale: nnx.Param
    bias: nnx.Param | None
    smoothing: nnx.Param | None
    rotation: nnx.Param | None
    mix: nnx.Param | None
    clip: nnx.Param | None

    def __init__(self, layer: QuantizedLinear) -> None:
        if type(layer) is not QuantizedLinear:
            raise TypeError(f"a {type(layer).__name__} is not tuned")
        self.rows, self.precision, self.layout = layer.rows, layer.precision, layer.layout
        self.dtype = layer.dtype
        for name in LEAVES:
            setattr(self, name, getattr(layer, name))

    def activated_input(self, hidden: Float[Array, "B L C"]) -> Deferred:
        """GELU, which the layer computes itself."""
        return Deferred(partial(jax.nn.gelu, approximate=True), hidden)

    def __call__(self, x: Float[Array, "*B K"] | Deferred) -> Float[Array, "*B N"]:
        """The layer's output for an array, or for what `activated_input` has returned."""
        function, hidden = x if isinstance(x, Deferred) else (lambda part: part, x)
        if hidden.ndim != 3:
            return self._product(function(hidden))
        return in_parts(lambda part: self._product(function(part)), hidden)

    def gated_sum(
        self,
        x: Float[Array, "B L N"],
        gate: Float[Array, "B N"],
        prepared: Float[Array, "B L K"] | Deferred,
        *,
        dtype: DTypeLike | None = None,
    ) -> Float[Array, "B L N"]:
        """x + gate * layer(prepared); the sum is float32, as in the epilogue that computes it later."""
        y = gate.astype(jnp.float32)[:, None] * self(prepared).astype(jnp.float32)
        return (x.astype(jnp.float32) + y).astype(dtype or x.dtype)

    def _product(self, x: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
        def spread(vector: Array) -> Array:
            return vector.reshape((1,) * (x.ndim - 1) + (-1,))

        given, token_scale = x.dtype, None
        if self.smoothing is not None:
            x = (x.astype(jnp.float32) / spread(self.smoothing[...])).astype(given)
        if self.rotation is not None:
            mix = None if self.mix is None else self.mix[...]
            x = rotate(x, Rotation(self.rotation[...], mix))
        if self.precision.activations != UNQUANTIZED:
            clip = 1.0 if self.clip is None else self.clip[0]
            integers, token_scale = token_integers(x, self.precision.activations, clip)
            x = integers.astype(given)  # exact: bfloat16 holds all integers up to 256
        codes, scale = unpack(packed_weight(self)).astype(given), self.scale[...]
        if len(scale) > 1:  # groups, of few rows of x
            codes = codes * jnp.repeat(scale, self.rows // len(scale), axis=0).astype(given)
        y = jnp.matmul(x, codes, preferred_element_type=jnp.float32)
        if len(scale) == 1:
            y = y * spread(scale[0])
        if token_scale is not None:
            y = y * token_scale
        if self.bias is not None:
            y = y + spread(self.bias[...])
        return y.astype(self.dtype)


def with_tuned_layers(module: Module) -> Module:
    """A module, not changed, with a `TunedLinear` for every `QuantizedLinear`."""
    module = nnx.merge(*nnx.split(module))
    for _, parent in list(nnx.iter_modules(module)):
        for name, child in list(vars(parent).items()):
            if isinstance(child, JoinedLinear):
                halves = TunedLinear(child.attention), TunedLinear(child.mlp)
                setattr(parent, name, FakeJoinedLinear(*halves))
            elif isinstance(child, QuantizedLinear) and not isinstance(parent, JoinedLinear):
                setattr(parent, name, TunedLinear(child))
    return module


def iterate_quantized(
    module: nnx.Module,
) -> Iterator[tuple[str, nnx.Module, str, QuantizedLinear]]:
    """Every quantized layer: its dotted path, its parent and its name there, and the layer."""
    for path, parent in list(nnx.iter_modules(module)):
        for name, child in list(vars(parent).items()):
            if isinstance(child, QuantizedLinear):
                yield dotted(*path, name), parent, name, child
