"""The operands of a quantized matmul, checked once for all implementations."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.quantized_matmul.packing import PackedWeight

# int32 sums are exact up to this K: 128 * 128 K < 2^31. Longer ones would overflow silently.
_LONGEST_SUM = 2**17 - 1
_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)


@dataclass(frozen=True)
class MatmulOperands:
    """The arrays in residual + gate * activation(x_scale w_scale (x w) + bias).

    Attributes:
        x: int8 [M, K]; floats if `x_scale` is None.
        x_scale: floats [M].
        weight: packed w [K, N].
        w_scale: floats [N].
        bias: floats [N]; None adds nothing.
        residual: floats [M, N]; None adds nothing.
        gate: floats [G, N], a row for each of G groups of M/G consecutive rows; None is 1.

    Raises:
        ValueError: shapes or dtypes that do not go together.
    """

    x: Array
    x_scale: Array | None
    weight: PackedWeight
    w_scale: Array
    bias: Array | None = None
    residual: Array | None = None
    gate: Array | None = None

    def __post_init__(self) -> None:
        x, (k, n) = self.x, self.weight.shape
        if x.ndim != 2 or x.shape[1] != k:
            raise ValueError(
                f"x {x.shape} cannot be multiplied with a weight of shape {self.weight.shape}"
            )
        quantized = self.x_scale is not None
        if quantized == (x.dtype in _FLOATS) or (quantized and x.dtype != jnp.int8):
            raise ValueError(
                f"x is {x.dtype} and x_scale is {'given' if quantized else 'missing'};"
                " int8 values need a scale, floats have none"
            )
        if quantized and k > _LONGEST_SUM:
            raise ValueError(f"K = {k} is too long for int32 sums; at most {_LONGEST_SUM}")
        expected = {
            "x_scale": (self.x_scale, (x.shape[0],)),
            "w_scale": (self.w_scale, (n,)),
            "bias": (self.bias, (n,)),
            "residual": (self.residual, (x.shape[0], n)),
        }
        for name, (array, shape) in expected.items():
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
        gate = self.gate
        if gate is not None and (
            gate.ndim != 2 or gate.shape[1] != n or x.shape[0] % gate.shape[0]
        ):
            raise ValueError(f"gate {gate.shape} does not divide {x.shape[0]} rows of {n} columns")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(M, K, N)."""
        return self.x.shape[0], *self.weight.shape

    @property
    def groups(self) -> int:
        """G, or 1 without a gate."""
        return 1 if self.gate is None else self.gate.shape[0]
