"""The operation: shapes, dtypes and checks, and the choice of an implementation."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.dispatch import AUTO, Implementation, Operation
from pallas_kernels.quantized_matmul import gpu, jax_triton, reference, tpu, xla
from pallas_kernels.quantized_matmul.packing import PackedWeight

ACTIVATIONS = ("none", "gelu_tanh")
# int32 sums stay exact up to here: 128 * 128 K < 2^31; beyond, they would wrap without a word.
_LONGEST_SUM = 2**17 - 1
_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)


def quantized_matmul(
    x: Array,
    x_scale: Float[Array, " M"] | None,
    weight: PackedWeight,
    w_scale: Float[Array, " N"],
    bias: Float[Array, " N"] | None = None,
    *,
    activation: str = "none",
    residual: Float[Array, "M N"] | None = None,
    gate: Float[Array, "*G N"] | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    implementation: str = AUTO,
) -> Float[Array, "M N"]:
    """`residual + gate * activation(x_scale * w_scale * (x @ w) + bias)`, cast once, at the end.

    Sums are int32 and exact; everything after them is float32. With `x_scale` None the activations are floats
    and only the weights are integers (W4A16, W8A16): meant for few rows, where reading the weights is all there is to do.

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
    _check(x, x_scale, weight, w_scale, bias, activation, residual, gate)
    if gate is not None:
        gate = gate.reshape(-1, gate.shape[-1])
    serve = QUANTIZED_MATMUL.serve(
        implementation,
        bits=weight.bits,
        layout=weight.layout,
        rows=weight.rows,
        weight_only=x_scale is None,
    )
    return serve(
        x,
        x_scale,
        weight,
        w_scale,
        bias,
        residual,
        gate,
        activation=activation,
        out_dtype=jnp.dtype(out_dtype),
    )


def _check(
    x: Array,
    x_scale: Array | None,
    weight: PackedWeight,
    w_scale: Array,
    bias: Array | None,
    activation: str,
    residual: Array | None,
    gate: Array | None,
) -> None:
    rows, columns = weight.shape
    if x.ndim != 2 or x.shape[1] != rows:
        raise ValueError(f"x {x.shape} cannot be multiplied with a weight of shape {weight.shape}")
    if (x_scale is None) != (x.dtype in _FLOATS) or (x_scale is not None and x.dtype != jnp.int8):
        raise ValueError(
            f"x is {x.dtype}, x_scale is {'missing' if x_scale is None else 'given'};"
            " int8 values need a scale, floats have none"
        )
    if x_scale is not None and rows > _LONGEST_SUM:
        raise ValueError(f"K = {rows} is too long for int32 sums; at most {_LONGEST_SUM}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    expected = {
        "x_scale": (x_scale, (x.shape[0],)),
        "w_scale": (w_scale, (columns,)),
        "bias": (bias, (columns,)),
        "residual": (residual, (x.shape[0], columns)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if gate is not None and (
        gate.ndim > 2
        or gate.shape[-1] != columns
        or x.shape[0] % gate.reshape(-1, columns).shape[0]
    ):
        raise ValueError(
            f"gate {gate.shape} does not divide {x.shape[0]} rows of {columns} columns"
        )


def _reference(*operands: Any, out_dtype: jnp.dtype, **settings: Any) -> Array:
    return reference.quantized_matmul(*operands, **settings).astype(out_dtype)


def _mixed_dot_objection(*, backend: str, layout: str, weight_only: bool, **_: Any) -> str | None:
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
