"""A quantized layer with a thin correction in floating point beside it, after Q-VDiT's token-aware estimator.

A baseline: the correction needs the input before it is quantized, so that nothing is fused here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.quant.linear import QuantizedLinear


class BranchedTokens(NamedTuple):
    """A prepared input, and its projection on the branch, [B, L, 1]."""

    tokens: Any
    projected: Any


class BranchedLinear(QuantizedLinear):
    """`QuantizedLinear` plus (x branch_in) branch_out, [K, 1] and [1, N], float32 leaves."""

    modulated_input: Any = None
    activated_input: Any = None

    def __init__(self, leaves: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(leaves, **settings)
        self.branch_in = nnx.Param(leaves["branch_in"])
        self.branch_out = nnx.Param(leaves["branch_out"])

    def prepare(self, x: Float[Array, "*B K"]) -> BranchedTokens:
        """The input for both."""
        return BranchedTokens(
            super().prepare(x), jnp.matmul(x, self.branch_in[...].astype(x.dtype))
        )

    def __call__(self, given: Any) -> Float[Array, "*B N"]:
        """The sum of both."""
        given = given if isinstance(given, BranchedTokens) else self.prepare(given)
        added = jnp.matmul(given.projected, self.branch_out[...].astype(given.projected.dtype))
        return self._multiply(given.tokens) + added

    def gated_sum(self, x: Array, gate: Array, given: Any, *, dtype: Any = None) -> Array:
        """x + gate * layer(given)."""
        dtype = dtype or x.dtype
        return x.astype(dtype) + (gate[:, None] * self(given)).astype(dtype)
