"""The operation: shapes, dtypes and checks, and the choice of an implementation."""

from functools import partial

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.activations import ACTIVATIONS, Activation
from pallas_kernels.dispatch import AUTO, Implementation, Operation
from pallas_kernels.quantized_matmul import gpu, jax_triton, reference, tpu, xla
from pallas_kernels.quantized_matmul.operands import MatmulOperands
from pallas_kernels.quantized_matmul.packing import PackedWeight, WeightLayout


def quantized_matmul(
    x: Array,
    x_scale: Float[Array, " M"] | None,
    weight: PackedWeight,
    w_scale: Float[Array, " N"],
    bias: Float[Array, " N"] | None = None,
    *,
    activation: Activation = "none",
    residual: Float[Array, "M N"] | None = None,
    gate: Float[Array, "*G N"] | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    implementation: str = AUTO,
) -> Float[Array, "M N"]:
    """`residual + gate * activation(x_scale * w_scale * (x @ w) + bias)`, cast once, at the end.

    Sums are int32 and exact; everything after them is float32. With `x_scale` None the activations are floats
    and only the weights are integers (W4A16, W8A16). That is for few rows, where reading the weights takes all the time.

    Args:
        x: int8 [M, K]; or bfloat16, float16 or float32 when `x_scale` is None.
        x_scale: of each row (token).
        weight: packed [K, N], from `pack`.
        w_scale: of each column (output channel).
        bias: added before the activation.
        activation: "none" or "gelu_tanh".
        residual: added last.
        gate: [N], or [G, N] for G groups of M/G consecutive rows (one a sample).
        out_dtype: of the result.
        implementation: "auto" or a name of `QUANTIZED_MATMUL.implementations`.

    Returns:
        [M, N].

    Raises:
        ValueError: shapes or dtypes that do not go together.
        UnsupportedError: the implementation cannot serve this call; the message says why.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    if gate is not None and gate.ndim == 1:
        gate = gate.reshape(1, -1)
    operands = MatmulOperands(x, x_scale, weight, w_scale, bias, residual, gate)
    serve = QUANTIZED_MATMUL.serve(
        implementation,
        bits=weight.bits,
        layout=weight.layout,
        rows=weight.rows,
        weight_only=x_scale is None,
    )
    return serve(operands, activation=activation, out_dtype=jnp.dtype(out_dtype))


def _reference(
    operands: MatmulOperands, *, activation: Activation, out_dtype: jnp.dtype
) -> Float[Array, "M N"]:
    return reference.quantized_matmul(operands, activation=activation).astype(out_dtype)


def _mixed_dot_objection(
    *, backend: str, layout: WeightLayout, weight_only: bool, **_: object
) -> str | None:
    if backend != "tpu":
        return f"only a TPU multiplies int8 by int4 without widening first, not {backend}"
    if layout != "int4":
        return f"needs weights in layout 'int4', not {layout!r}"
    return "is for int8 activations" if weight_only else None


QUANTIZED_MATMUL = Operation(
    "quantized_matmul",
    {
        "xla_int4": Implementation(
            partial(xla.quantized_matmul, mixed_dot=True), _mixed_dot_objection
        ),
        "tpu": Implementation(tpu.quantized_matmul, tpu.objection, tiled=True),
        "gpu": Implementation(gpu.quantized_matmul, gpu.objection, tiled=True),
        "jax_triton": Implementation(jax_triton.quantized_matmul, jax_triton.objection, tiled=True),
        "xla": Implementation(xla.quantized_matmul, lambda **_: None),
        "reference": Implementation(_reference, lambda **_: None),
    },
)
