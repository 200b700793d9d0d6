"""Plain XLA: an integer dot, whose result XLA scales, activates and casts in one fusion. Any backend.

On TPU this is the fastest form there is for int4 weights kept as `jnp.int4` (layout "int4"): they are widened on
their way to the matrix unit, never in HBM. On a CPU with AMX or VNNI the int8 dot runs on those units.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.quantized_matmul.packing import PackedWeight, unpack


def quantized_matmul(
    x: Array,
    x_scale: Float[Array, " M"] | None,
    weight: PackedWeight,
    w_scale: Float[Array, " N"],
    bias: Array | None,
    residual: Array | None,
    gate: Array | None,
    *,
    activation: str,
    out_dtype: jnp.dtype,
    mixed_dot: bool = False,
) -> Array:
    """See `api.quantized_matmul`; differentiable in everything but the integers.

    Args:
        x, x_scale, weight, w_scale, bias, residual, gate: checked operands.
        activation: "none" or "gelu_tanh".
        out_dtype: of the result.
        mixed_dot: multiply int8 by int4 without widening first; TPUs can, others compute it in int32.
    """
    w = weight.planes[0] if mixed_dot and weight.layout == "int4" else unpack(weight)
    dims = (((1,), (0,)), ((), ()))
    if x_scale is None:
        y = jax.lax.dot_general(x, w.astype(x.dtype), dims, preferred_element_type=jnp.float32)
    else:
        y = jax.lax.dot_general(x, w, dims, preferred_element_type=jnp.int32)
        y = y.astype(jnp.float32) * x_scale[:, None]
    y = y * w_scale[None]
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None]
    if activation == "gelu_tanh":
        y = jax.nn.gelu(y, approximate=True)
    if gate is not None:
        groups, columns = gate.shape
        grouped = y.reshape(groups, -1, columns) * gate.astype(jnp.float32)[:, None]
        y = grouped.reshape(y.shape)
    if residual is not None:
        y = residual.astype(jnp.float32) + y
    return y.astype(out_dtype)
