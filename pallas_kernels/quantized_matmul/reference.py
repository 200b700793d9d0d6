"""The meaning of the operation, in a few lines of float32."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Int32

from pallas_kernels.activations import Activation, activate
from pallas_kernels.quantized_matmul.operands import MatmulOperands
from pallas_kernels.quantized_matmul.packing import unpack


def quantized_matmul(operands: MatmulOperands, *, activation: Activation) -> Float[Array, "M N"]:
    """residual + gate * activation(x_scale w_scale (x w) + bias), float32."""
    x, w = operands.x, unpack(operands.weight)
    if operands.x_scale is None:
        y = jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32), precision="highest")
    else:
        y = accumulated(x, w).astype(jnp.float32) * operands.x_scale[:, None]
    y = y * operands.w_scale[None]
    if operands.bias is not None:
        y = y + operands.bias.astype(jnp.float32)[None]
    y = activate(y, activation)
    if operands.gate is not None:
        y = y * jnp.repeat(operands.gate.astype(jnp.float32), len(y) // operands.groups, axis=0)
    return y if operands.residual is None else operands.residual.astype(jnp.float32) + y


def accumulated(x: Int8[Array, "M K"], w: Int8[Array, "K N"]) -> Int32[Array, "M N"]:
    """x w in int32, exact: at most 128 * 128 * K."""
    return jnp.matmul(x.astype(jnp.int32), w.astype(jnp.int32))
