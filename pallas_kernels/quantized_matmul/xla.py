"""Plain XLA: an integer dot, whose result XLA scales, activates and casts in one fusion. Any backend.

On a TPU this is the fastest implementation for int4 weights kept as `jnp.int4` (layout "int4"): they are widened on their way
to the matrix unit, never in HBM. On a CPU with AMX or VNNI the int8 dot runs on those units.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.activations import Activation, activate
from pallas_kernels.quantized_matmul.operands import MatmulOperands
from pallas_kernels.quantized_matmul.packing import unpack


def quantized_matmul(
    operands: MatmulOperands,
    *,
    activation: Activation,
    out_dtype: jnp.dtype,
    mixed_dot: bool = False,
) -> Float[Array, "M N"]:
    """See `api.quantized_matmul`; differentiable in everything but the integers.

    Args:
        operands: checked.
        activation: "none" or "gelu_tanh".
        out_dtype: of the result.
        mixed_dot: multiply int8 by int4 without widening first; TPUs can, others compute it in int32.
    """
    x, weight = operands.x, operands.weight
    w = weight.planes[0] if mixed_dot and weight.layout == "int4" else unpack(weight)
    dims = (((1,), (0,)), ((), ()))
    if operands.x_scale is None:
        y = jax.lax.dot_general(x, w.astype(x.dtype), dims, preferred_element_type=jnp.float32)
    else:
        y = jax.lax.dot_general(x, w, dims, preferred_element_type=jnp.int32)
        y = y.astype(jnp.float32) * operands.x_scale[:, None]
    y = y * operands.w_scale[None]
    if operands.bias is not None:
        y = y + operands.bias.astype(jnp.float32)[None]
    y = activate(y, activation)
    if operands.gate is not None:
        grouped = y.reshape(operands.groups, -1, y.shape[1])
        y = (grouped * operands.gate.astype(jnp.float32)[:, None]).reshape(y.shape)
    if operands.residual is not None:
        y = operands.residual.astype(jnp.float32) + y
    return y.astype(out_dtype)
