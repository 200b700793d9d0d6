"""A quantized layer with a thin correction in floating point beside it, after Q-VDiT's token-aware estimator.

A baseline: the correction needs the input before it is quantized, so that nothing is fused here.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.quantized_matmul import WeightLayout
from qsjax.quant.linear import QuantizedLinear, QuantizedTokens
from qsjax.quant.recipe import Precision


class BranchedLinear(QuantizedLinear):
    """`QuantizedLinear` plus (x branch_in) branch_out, [K, 1] and [1, N], float32 leaves."""

    def __init__(
        self,
        leaves: Mapping[str, Array | np.ndarray | None],
        *,
        rows: int,
        precision: Precision,
        dtype: DTypeLike,
        layout: WeightLayout = "bytes",
    ) -> None:
        super().__init__(leaves, rows=rows, precision=precision, dtype=dtype, layout=layout)
        self.branch_in = nnx.Param(leaves["branch_in"])
        self.branch_out = nnx.Param(leaves["branch_out"])

    @property
    def modulated_input(self) -> None:
        """None: the branch takes the modulated norm in floating point."""

    @property
    def split_output(self) -> None:
        """None: the branch is added to the whole."""

    @property
    def activated_input(self) -> None:
        """None: the branch takes the GELU in floating point."""

    def __call__(self, x: Float[Array, "*B K"] | QuantizedTokens) -> Float[Array, "*B N"]:
        """The sum of both.

        Raises:
            TypeError: of quantized tokens, from which the branch cannot be computed.
        """
        if isinstance(x, QuantizedTokens):
            raise TypeError("a layer with a branch takes its input before it is quantized")
        projected = jnp.matmul(x, self.branch_in[...].astype(x.dtype))
        correction = jnp.matmul(projected, self.branch_out[...].astype(x.dtype))
        return super().__call__(x) + correction

    def gated_sum(
        self,
        x: Float[Array, "B L N"],
        gate: Float[Array, "B N"],
        prepared: Float[Array, "B L K"] | QuantizedTokens,
        *,
        dtype: DTypeLike | None = None,
    ) -> Float[Array, "B L N"]:
        """x + gate * layer(prepared)."""
        dtype = dtype or x.dtype
        return x.astype(dtype) + (gate[:, None] * self(prepared)).astype(dtype)
