"""Blocks of one kind as a single module, every parameter with a leading layer axis, to run under `jax.lax.scan`.

A stack compiles once, whatever its depth. How it is run differs: `qsjax.dit.stack` threads a state through the blocks,
`qsjax.text.stack` keeps XLA for CPU from widening all layers' bfloat16 weights at once.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx
from jaxtyping import Array

Block = TypeVar("Block", bound=nnx.Module)


def stacked(build: Callable[[nnx.Rngs], Block], count: int, rngs: nnx.Rngs) -> Block:
    """`count` independently initialized blocks as one module whose parameters lead with the layer axis."""
    return nnx.vmap(build)(rngs.split(count))


def depth(parameters: object) -> int:
    """The number of layers in the parameters of a stack."""
    return jax.tree.leaves(parameters)[0].shape[0]


def take_layer(stack: Array, index: Array | int) -> Array:
    """One layer's slice of an array with a leading layer axis."""
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)
