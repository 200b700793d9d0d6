"""Layers of one kind, stacked: one set of parameters with a leading layer axis, run by one scan.

A stack compiles once, whatever its depth, and holds one layer's temporaries at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """`depth` independently initialized layers as one module whose parameters lead with the layer axis."""
    return nnx.split_rngs(splits=depth)(nnx.vmap(make, in_axes=0, out_axes=0))(rngs)


def run(layers: Any, x: Array, *context: Any) -> Array:
    """Pass `x` through every layer in turn: `x = layer(x, *context)`."""
    graph, stacked = nnx.split(layers)
    depth = jax.tree.leaves(stacked)[0].shape[0]

    def step(carry: Array, index: Array) -> tuple[Array, None]:
        parameters = jax.tree.map(lambda leaf: _take(leaf, index), stacked)
        return nnx.merge(graph, parameters)(carry, *context), None

    return jax.lax.scan(step, x, jnp.arange(depth, dtype=jnp.int32))[0]


def _take(stacked: Array, index: Array) -> Array:
    """The parameter of one layer."""
    take = partial(jax.lax.dynamic_index_in_dim, keepdims=False)
    if stacked.dtype.itemsize != 2:
        return take(stacked, index)
    return jax.lax.platform_dependent(stacked, index, cpu=_take_bits, default=take)


def _take_bits(stacked: Array, index: Array) -> Array:
    """The same, read as 16-bit integers.

    CPUs have no bfloat16 arithmetic, so XLA widens whatever it reads in bfloat16: here the whole stack, ahead of the
    loop, 27 GB for the 8B LLaMA instead of one layer's 0.9. Integers are not widened, and the barrier keeps the
    reinterpretation inside the loop, where it costs no copy.
    """
    stacked, index = jax.lax.optimization_barrier((stacked, index))
    bits = jax.lax.bitcast_convert_type(stacked, jnp.uint16)
    layer = jax.lax.dynamic_index_in_dim(bits, index, keepdims=False)
    return jax.lax.bitcast_convert_type(layer, stacked.dtype)
