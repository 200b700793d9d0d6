"""Linear layers with integer weights, for the linear slot of `qsjax.dit.slot`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from pallas_kernels import Kernels, PackedWeight, quantize_tokens, quantized_matmul, unpack
from pallas_kernels.activations import Activation
from pallas_kernels.quantize_tokens.reference import Norm
from pallas_kernels.quantized_matmul import WeightLayout
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.quant.recipe import Precision
from qsjax.quant.rotation import Rotation, rotate

LEAVES = ("packed", "low_bits", "scale", "bias", "smoothing", "rotation", "mix", "clip")
"""Parameters of a `QuantizedLinear`; of a layer some of them are None."""


@runtime_checkable
class Packed(Protocol):
    """A layer with packed weights.

    Attributes:
        packed, low_bits: their planes; a matrix of 4 or 8 bits has the first one only.
        precision: of the layer.
        layout: of the planes.
        rows: K.
    """

    packed: nnx.Param
    low_bits: nnx.Param | None
    precision: Precision
    layout: WeightLayout
    rows: int


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

    packed: nnx.Param
    low_bits: nnx.Param | None
    scale: nnx.Param
    bias: nnx.Param | None
    smoothing: nnx.Param | None
    rotation: nnx.Param | None
    mix: nnx.Param | None
    clip: nnx.Param | None

    def __init__(
        self,
        leaves: Mapping[str, Array | np.ndarray | None],
        *,
        rows: int,
        precision: Precision,
        dtype: DTypeLike,
        layout: WeightLayout = "bytes",
    ) -> None:
        self.rows, self.precision, self.layout = rows, precision, layout
        self.kernels = Kernels()
        self.dtype = jnp.dtype(dtype)
        for name in LEAVES:
            leaf = leaves[name] if name in ("packed", "scale") else leaves.get(name)
            setattr(self, name, nnx.data(None if leaf is None else nnx.Param(leaf)))

    def __call__(self, x: Float[Array, "*B K"] | QuantizedTokens) -> Float[Array, "*B N"]:
        """The layer's output for an array, or for what one of the `*_input` methods returned."""
        return self._multiply(x if isinstance(x, QuantizedTokens) else self.prepare(x))

    @property
    def modulated_input(self) -> Callable[[Array, Array, Array], QuantizedTokens] | None:
        """Norm, modulation, rotation and quantization in one pass; None where that is not one pass."""
        return self._modulated if self._fused else None

    @property
    def activated_input(self) -> Callable[[Array], QuantizedTokens] | None:
        """GELU, smoothing, rotation and quantization in one pass; None where that is not one pass."""
        return self._activated if self._fused else None

    def prepare(self, x: Float[Array, "*B K"]) -> Float[Array, "*B K"] | QuantizedTokens:
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

    @property
    def split_output(self) -> Callable[[Array | QuantizedTokens, int], tuple[Array, Array]] | None:
        """Two products with the columns before and after a place; None where the product is not a kernel of its own."""
        return None if self.precision.group else self._split

    def gated_sum(
        self,
        x: Float[Array, "B L N"],
        gate: Float[Array, "B N"],
        prepared: Float[Array, "B L K"] | QuantizedTokens,
        *,
        dtype: DTypeLike | None = None,
    ) -> Float[Array, "B L N"]:
        """x + gate * layer(prepared), in the matmul's epilogue."""
        if not isinstance(prepared, QuantizedTokens):
            prepared = self.prepare(prepared)
        if not self.precision.group:
            return self._multiply(prepared, residual=x, gate=gate, dtype=dtype or x.dtype)
        y = self._multiply(prepared, dtype=jnp.float32)
        y = x.astype(jnp.float32) + gate.astype(jnp.float32)[:, None] * y
        return y.astype(dtype or x.dtype)

    @property
    def _fused(self) -> bool:
        return self.precision.activations != UNQUANTIZED and self.mix is None

    @property
    def _clip(self) -> Array | float:
        return 1.0 if self.clip is None else self.clip[0]

    @property
    def weight(self) -> PackedWeight:
        """The packed matrix [K, N]."""
        return packed_weight(self)

    def _split(self, prepared: Array | QuantizedTokens, at: int) -> tuple[Array, Array]:
        if not isinstance(prepared, QuantizedTokens):
            prepared = self.prepare(prepared)
        _, columns = self.weight.shape
        left, right = (self._multiply(prepared, columns=part) for part in ((0, at), (at, columns)))
        return left, right

    def _modulated(self, x: Array, shift: Array, scale: Array) -> QuantizedTokens:
        return self._quantize(x, norm="layer", shift=shift, scale=scale)

    def _activated(self, hidden: Array) -> QuantizedTokens:
        return self._quantize(hidden, activation="gelu_tanh")

    def _quantize(
        self,
        x: Array,
        *,
        norm: Norm = "none",
        activation: Activation = "none",
        shift: Array | None = None,
        scale: Array | None = None,
    ) -> QuantizedTokens:
        values, token_scale = quantize_tokens(
            x.reshape(-1, self.rows),
            norm=norm,
            activation=activation,
            shift=shift,
            scale=scale,
            smoothing=None if self.smoothing is None else self.smoothing[...],
            rotation=None if self.rotation is None else self.rotation[...].astype(self.dtype),
            bits=self.precision.activations,
            clip=self._clip,
            implementation=self.kernels.quantize,
        )
        return QuantizedTokens(values.reshape(x.shape), token_scale.reshape(x.shape[:-1]))

    def _multiply(
        self,
        prepared: Array | QuantizedTokens,
        *,
        residual: Array | None = None,
        gate: Array | None = None,
        dtype: DTypeLike | None = None,
        columns: tuple[int, int] | None = None,
    ) -> Array:
        """The product and what is fused into it; `columns`, from and to, are a part of the output."""
        values, scale = prepared if isinstance(prepared, QuantizedTokens) else (prepared, None)
        weight, w_scale = self.weight, self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        if columns is not None:
            start, stop = columns
            weight, w_scale = weight.columns(start, stop), w_scale[:, start:stop]
            bias = None if bias is None else bias[start:stop]
        flat, dtype = values.reshape(-1, self.rows), dtype or self.dtype
        if self.precision.group:
            y = _grouped(flat, weight, w_scale)
            y = (y if bias is None else y + bias[None]).astype(dtype)
        else:
            y = quantized_matmul(
                flat,
                None if scale is None else scale.reshape(-1),
                weight,
                w_scale[0],
                bias,
                residual=None if residual is None else residual.reshape(len(flat), -1),
                gate=gate,
                out_dtype=dtype,
                implementation=self.kernels.matmul,
            )
        return y.reshape(*values.shape[:-1], -1)


class JoinedLinear(nnx.Module):
    """A single block's second layer: two inputs that are quantized separately, each with its own scales and weights.

    Attention and GELU have different ranges, and a rotation over both could not be merged into V's columns.
    """

    def __init__(self, attention: QuantizedLinear, mlp: QuantizedLinear) -> None:
        self.attention, self.mlp = attention, mlp

    def joined_input(self, attended: Array, hidden: Array) -> tuple[Array, Array | QuantizedTokens]:
        """Both inputs; the attention's is quantized when it is multiplied."""
        activate = self.mlp.activated_input
        if activate is None:
            return attended, jax.nn.gelu(hidden, approximate=True)
        return attended, activate(hidden)

    def __call__(self, prepared: tuple[Array, Array | QuantizedTokens]) -> Array:
        """attention + mlp, of what `joined_input` returns."""
        attended, active = prepared
        return self.attention(attended) + self.mlp(active)

    def gated_sum(
        self, x: Array, gate: Array, prepared: tuple[Array, Array | QuantizedTokens]
    ) -> Array:
        """x + gate * (attention + mlp); the sum in between is float32."""
        attended, active = prepared
        between = self.attention.gated_sum(x, gate, attended, dtype=jnp.float32)
        return self.mlp.gated_sum(between, gate, active, dtype=x.dtype)


def packed_weight(layer: Packed) -> PackedWeight:
    """The packed matrix [K, N] of a layer."""
    planes = (layer.packed[...],)
    if layer.low_bits is not None:
        planes = (*planes, layer.low_bits[...])
    return PackedWeight(planes, layer.precision.container, layer.layout, layer.rows)


def _grouped(x: Array, weight: PackedWeight, scale: Array) -> Array:
    """A product with weights whose scales change along K: they are dequantized first. For few rows of x."""
    w = unpack(weight).astype(jnp.float32).reshape(len(scale), -1, scale.shape[1])
    w = (w * scale[:, None]).reshape(weight.shape).astype(x.dtype)
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def _last(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
