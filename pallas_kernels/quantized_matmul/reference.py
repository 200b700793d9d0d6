"""The meaning of the operation, in a few lines of float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.quantized_matmul.packing import PackedWeight, unpack


def quantized_matmul(
    x: Array,
    x_scale: Float[Array, " M"] | None,
    weight: PackedWeight,
    w_scale: Float[Array, " N"],
    bias: Float[Array, " N"] | None,
    residual: Float[Array, "M N"] | None,
    gate: Float[Array, "G N"] | None,
    *,
    activation: str,
) -> Float[Array, "M N"]:
    """residual + gate * activation(x_scale w_scale (x w) + bias), float32."""
    w = unpack(weight)
    if x_scale is None:
        y = jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32), precision="highest")
    else:
        y = accumulated(x, w).astype(jnp.float32) * x_scale[:, None]
    y = y * w_scale[None]
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None]
    if activation == "gelu_tanh":
        y = jax.nn.gelu(y, approximate=True)
    if gate is not None:
        y = y * jnp.repeat(gate.astype(jnp.float32), len(y) // len(gate), axis=0)
    return y if residual is None else residual.astype(jnp.float32) + y


def accumulated(x: Int8[Array, "M K"], w: Int8[Array, "K N"]) -> Array:
    """x w in int32, exact: at most 128 * 128 * K."""
    return jnp.matmul(x.astype(jnp.int32), w.astype(jnp.int32))
