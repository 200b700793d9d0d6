"""Matmuls of training in a chosen dtype: operands rounded to it, sums and gradients in float32.

Where a CPU has matrix units for bfloat16 (AMX) or a GPU has tensor cores, this is what makes a training step fast.
The forms below are those that XLA:CPU maps to its fast kernels; gradients of scanned or batched matmuls are not.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from qsjax.dit.attention import key_bias
from qsjax.dit.blocks import Attention

State = TypeVar("State")
In = TypeVar("In")
Out = TypeVar("Out")
_Heads = Float[Array, "N L D"]


def use_in_linears(module: nnx.Module, dtype: jnp.dtype) -> None:
    """Let every `nnx.Linear` in `module` multiply in `dtype`; its parameters stay as they are."""
    linear = _linear(dtype)

    def dot_general(x: Array, kernel: Array, *_: object, **__: object) -> Array:
        return linear(x, kernel)

    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, nnx.Linear):
            layer.dot_general = dot_general


def attention(dtype: jnp.dtype) -> Attention:
    """Dense attention for the DiT's slot that recomputes its scores for the gradient."""
    attend = _attention(dtype)

    def slot(
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B L"],
        state: State,
    ) -> tuple[Float[Array, "B L H D"], State]:
        batch, length, heads, size = q.shape
        bias = jnp.repeat(key_bias(kv_valid), heads, axis=0)

        def flat(x: Array) -> Array:
            return x.transpose(0, 2, 1, 3).reshape(batch * heads, length, size)

        out = attend(flat(q), flat(k), flat(v), bias).reshape(batch, heads, length, size)
        return out.transpose(0, 2, 1, 3), state

    return slot


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _turned(x: Array) -> Array:
    """The transposed matrix, written out: a transposition inside a matmul keeps it from the fast kernels."""
    return jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


def _linear(dtype: jnp.dtype) -> Callable[[Array, Array], Array]:
    @jax.custom_vjp
    def linear(x: Array, kernel: Array) -> Array:
        return _dot(x.astype(dtype), kernel.astype(dtype))

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return linear(x, kernel), (x, kernel)

    def backward(kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
        x, kernel = kept
        rows, slopes = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
        # The sum over all tokens stays float32.
        to_kernel = jax.lax.dot_general(rows, slopes, (((0,), (0,)), ((), ())))
        to_x = jax.lax.dot_general(
            slope.astype(dtype),
            kernel.astype(dtype),
            (((slope.ndim - 1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return to_x, to_kernel

    linear.defvjp(forward, backward)
    return linear


def _attention(dtype: jnp.dtype) -> Callable[[_Heads, _Heads, _Heads, Float[Array, "N L"]], _Heads]:
    each = jax.lax.map if jax.default_backend() == "cpu" else _batched

    def scores(q: Array, k: Array, bias: Array) -> Array:
        return _dot(q, _turned(k)) * jnp.float32(q.shape[-1] ** -0.5) + bias[None]

    def head(operands: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, bias = (*(x.astype(dtype) for x in operands[:3]), operands[3])
        logits = scores(q, k, bias)
        peak = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - peak)
        total = weights.sum(axis=-1, keepdims=True)
        return _dot(weights.astype(dtype), v) / total, peak + jnp.log(total)

    def slopes(operands: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        *wide, bias, out, log_total, slope = operands
        q, k, v, narrow = (x.astype(dtype) for x in (*wide, slope))
        weights = jnp.exp(scores(q, k, bias) - log_total)
        to_v = _dot(_turned(weights.astype(dtype)), narrow)
        mean = (slope * out).sum(axis=-1, keepdims=True)
        to_scores = weights * (_dot(narrow, _turned(v)) - mean) * jnp.float32(q.shape[-1] ** -0.5)
        to_scores = to_scores.astype(dtype)
        return _dot(to_scores, k), _dot(_turned(to_scores), q), to_v

    @jax.custom_vjp
    def attend(q: Array, k: Array, v: Array, bias: Array) -> Array:
        return each(head, (q, k, v, bias))[0]

    def forward(q: Array, k: Array, v: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
        out, log_total = each(head, (q, k, v, bias))
        return out, (q, k, v, bias, out, log_total)

    def backward(kept: tuple[Array, ...], slope: Array) -> tuple[Array, ...]:
        return (*each(slopes, (*kept, slope)), jnp.zeros_like(kept[3]))

    attend.defvjp(forward, backward)
    return attend


def _batched(function: Callable[[In], Out], values: In) -> Out:
    return jax.vmap(function)(values)
