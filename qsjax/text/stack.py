"""The text encoders' stacks of layers, run by one scan that holds one layer's temporaries at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from qsjax.layers.stack import depth, take_layer


def run(layers: Callable[..., Array], x: Array, *context: Array) -> Array:
    """Pass `x` through every layer in turn: `x = layer(x, *context)`.

    Args:
        layers: a stacked module.
        x: the residual stream.
        context: the same for all layers.
    """
    graph, stack = nnx.split(layers)

    def step(carry: Array, index: Array) -> tuple[Array, None]:
        parameters = jax.tree.map(lambda leaf: _take(leaf, index), stack)
        return nnx.merge(graph, parameters)(carry, *context), None

    return jax.lax.scan(step, x, jnp.arange(depth(stack), dtype=jnp.int32))[0]


def _take(stack: Array, index: Array) -> Array:
    """The parameter of one layer."""
    if stack.dtype.itemsize != 2:
        return take_layer(stack, index)
    return jax.lax.platform_dependent(stack, index, cpu=_take_bits, default=take_layer)


def _take_bits(stack: Array, index: Array) -> Array:
    """The same, read as 16-bit integers.

    CPUs have no bfloat16 arithmetic, so XLA widens whatever it reads in bfloat16: here the whole stack, ahead of the
    loop, 27 GB for the 8B LLaMA instead of one layer's 0.9. Integers are not widened, and the barrier keeps the
    reinterpretation inside the loop, where it costs no copy.
    """
    stack, index = jax.lax.optimization_barrier((stack, index))
    bits = jax.lax.bitcast_convert_type(stack, jnp.uint16)
    return jax.lax.bitcast_convert_type(take_layer(bits, index), stack.dtype)
