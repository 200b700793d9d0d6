"""Linear layers with integer weights, for the linear slot of `qsjax.dit.slot`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

from pallas_kernels import Kernels, PackedWeight, quantize_tokens, quantized_matmul, unpack
from pallas_kernels.quantized_matmul import WeightLayout
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.quant.recipe import Precision
from qsjax.quant.rotation import Rotation, rotate


class QuantizedTokens(NamedTuple):
    """Activations as integers, with a scale for each token."""

    values: Int8[Array, "B L C"]
    scale: Float[Array, "B L"]


class QuantizedLinear(nnx.Module):
    """Packed integer weights; the input is divided, rotated and quantized in one pass.

    Leaves (with a leading axis where blocks are stacked), absent ones None: `packed` and `low_bits` int8, see
    `pallas_kernels.quantized_matmul.packing`; `scale` [G, N]; `bias` [N]; `smoothing` [K]; `rotation` [R, R]; `mix`
    [K/R, K/R]; `clip` [1] of the activations' range. All but the integers are float32.

    Args:
        leaves: by those names.
        rows: K.
        precision: bits of weights and activations, groups of weights.
        dtype: of the output, and of the product with the rotation.
        layout: of the packed weights.
    """

    packed: Any
    low_bits: Any
    scale: Any
    bias: Any
    smoothing: Any
    rotation: Any
    mix: Any
    clip: Any

    def __init__(
        self,
        leaves: Mapping[str, Any],
        *,
        rows: int,
        precision: Precision,
        dtype: jnp.dtype | type,
        layout: WeightLayout = "bytes",
    ) -> None:
        self.rows, self.precision, self.layout = rows, precision, layout
        self.kernels = Kernels()
        self.dtype = jnp.dtype(dtype)
        for name in ("packed", "scale"):
            setattr(self, name, nnx.Param(leaves[name]))
        for name in ("low_bits", "bias", "smoothing", "rotation", "mix", "clip"):
            leaf = leaves.get(name)
            setattr(self, name, nnx.data(None if leaf is None else nnx.Param(leaf)))

    def __call__(self, given: Float[Array, "*B K"] | QuantizedTokens) -> Float[Array, "*B N"]:
        """The layer's output; `given` is an array, or what one of the `*_input` methods returned."""
        if isinstance(given, QuantizedTokens):
            return self._multiply(given)
        return self._multiply(self.prepare(given))

    @property
    def modulated_input(self) -> Any:
        """Norm, modulation, rotation and quantization in one pass; None where that is not one pass."""
        return self._modulated if self._fused else None

    @property
    def activated_input(self) -> Any:
        """GELU, smoothing, rotation and quantization in one pass; None where that is not one pass."""
        return self._activated if self._fused else None

    def prepare(self, x: Float[Array, "*B K"]) -> Any:
        """Smoothed, rotated and, unless the layer is weight-only, quantized."""
        if self._fused:
            return self._quantize(x)
        if self.smoothing is not None:
            x = (x.astype(jnp.float32) / _last(self.smoothing[...], x)).astype(x.dtype)
        mix = None if self.mix is None else self.mix[...]
        x = rotate(x, None if self.rotation is None else Rotation(self.rotation[...], mix))
        if self.precision.activations == UNQUANTIZED:
            return x
        values, scale = quantize_tokens(
            x.reshape(-1, self.rows),
            bits=self.precision.activations,
            clip=self._clip,
            implementation=self.kernels.quantize,
        )
        return QuantizedTokens(values.reshape(x.shape), scale.reshape(x.shape[:-1]))

    def gated_sum(
        self,
        x: Float[Array, "B L N"],
        gate: Float[Array, "B N"],
        given: Any,
        *,
        dtype: Any = None,
    ) -> Float[Array, "B L N"]:
        """x + gate * layer(given), in the matmul's epilogue."""
        given = given if isinstance(given, QuantizedTokens) else self.prepare(given)
        if not self.precision.group:
            return self._multiply(given, residual=x, gate=gate, dtype=dtype or x.dtype)
        y = self._multiply(given, dtype=jnp.float32)
        y = x.astype(jnp.float32) + gate.astype(jnp.float32)[:, None] * y
        return y.astype(dtype or x.dtype)

    @property
    def _fused(self) -> bool:
        return self.precision.activations != UNQUANTIZED and self.mix is None

    @property
    def _clip(self) -> Any:
        return 1.0 if self.clip is None else self.clip[0]

    @property
    def weight(self) -> PackedWeight:
        """The packed matrix [K, N]."""
        planes = (self.packed[...],)
        if self.low_bits is not None:
            planes = (*planes, self.low_bits[...])
        return PackedWeight(planes, self.precision.container, self.layout, self.rows)

    def _modulated(self, x: Array, shift: Array, scale: Array) -> QuantizedTokens:
        return self._quantize(x, norm="layer", shift=shift, scale=scale)

    def _activated(self, hidden: Array) -> QuantizedTokens:
        return self._quantize(hidden, activation="gelu_tanh")

    def _quantize(self, x: Array, **settings: Any) -> QuantizedTokens:
        values, scale = quantize_tokens(
            x.reshape(-1, self.rows),
            smoothing=None if self.smoothing is None else self.smoothing[...],
            rotation=None if self.rotation is None else self.rotation[...].astype(self.dtype),
            bits=self.precision.activations,
            clip=self._clip,
            implementation=self.kernels.quantize,
            **settings,
        )
        return QuantizedTokens(values.reshape(x.shape), scale.reshape(x.shape[:-1]))

    def _multiply(
        self,
        given: Any,
        *,
        residual: Array | None = None,
        gate: Array | None = None,
        dtype: Any = None,
    ) -> Array:
        values, scale = given if isinstance(given, QuantizedTokens) else (given, None)
        bias = None if self.bias is None else self.bias[...]
        flat, dtype = values.reshape(-1, self.rows), dtype or self.dtype
        if self.precision.group:
            y = _grouped(flat, self.weight, self.scale[...])
            y = (y if bias is None else y + bias[None]).astype(dtype)
        else:
            y = quantized_matmul(
                flat,
                None if scale is None else scale.reshape(-1),
                self.weight,
                self.scale[0],
                bias,
                residual=None if residual is None else residual.reshape(len(flat), -1),
                gate=gate,
                out_dtype=dtype,
                implementation=self.kernels.matmul,
            )
        return y.reshape(*values.shape[:-1], -1)


class JoinedLinear(nnx.Module):
    """A single block's second layer: two inputs that are quantized apart, each with scales and weights of its own.

    Attention and GELU have unlike ranges, and a rotation over both would not be mergeable for one of them.
    """

    def __init__(self, attention: QuantizedLinear, mlp: QuantizedLinear) -> None:
        self.attention, self.mlp = attention, mlp

    def joined_input(self, attended: Array, hidden: Array) -> tuple[Any, Any]:
        """Both inputs; what is not quantized tokens yet, its layer prepares."""
        ask = self.mlp.activated_input
        return attended, jax.nn.gelu(hidden, approximate=True) if ask is None else ask(hidden)

    def gated_sum(self, x: Array, gate: Array, given: tuple[Any, Any]) -> Array:
        """x + gate * (attention + mlp); the sum in between is float32."""
        attended, active = given
        between = self.attention.gated_sum(x, gate, attended, dtype=jnp.float32)
        return self.mlp.gated_sum(between, gate, active, dtype=x.dtype)


def _grouped(x: Array, weight: PackedWeight, scale: Array) -> Array:
    """A product with weights whose scales change along K: they become floats first. For few rows."""
    w = unpack(weight).astype(jnp.float32).reshape(len(scale), -1, scale.shape[1])
    w = (w * scale[:, None]).reshape(weight.shape).astype(x.dtype)
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def _last(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
