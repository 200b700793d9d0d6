"""Blocks of one kind as a single module with stacked parameters, run under `jax.lax.scan`.

Sixty blocks compile as two. The carry may hold a state stacked over layers; each layer reads and
writes its own slice in place, so that a donated state is never held twice.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Block = TypeVar("Block", bound=nnx.Module)


def stacked(build: Callable[[nnx.Rngs], Block], count: int, rngs: nnx.Rngs) -> Block:
    """`count` blocks made by `build`, every parameter with a leading axis of that length."""
    return nnx.vmap(build)(rngs.split(count))


def over_layers(blocks: Block, function: Callable[[Block], Any]) -> Any:
    """`function` of one block after the other, results stacked over layers.

    Not all at once: packed weights that are widened for a product would be so for every layer.
    """
    graph, parameters = nnx.split(blocks)
    return jax.lax.map(lambda one: function(nnx.merge(graph, one)), parameters)


def scan_layers(
    blocks: Block,
    step: Callable[[Block, Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    inputs: Any,
    state: Any,
    *,
    first: int = 0,
) -> tuple[Any, Any]:
    """Run blocks one after the other.

    Args:
        blocks: a stacked module.
        step: `(block, carry, input, layer_state) -> (carry, layer_state)`.
        carry: passes from block to block.
        inputs: pytree with a leading layer axis, one slice a block.
        state: pytree with a leading axis over all layers of the model (not only of this stack), or ().
        first: index of this stack's first block in `state`.

    Returns:
        The last carry and the updated state.
    """
    graph, parameters = nnx.split(blocks)
    count = jax.tree.leaves(parameters)[0].shape[0]

    def body(loop: tuple[Any, Any], scanned: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any], None]:
        carry, state = loop
        one, given, index = scanned
        mine = jax.tree.map(
            lambda whole: jax.lax.dynamic_index_in_dim(whole, index, keepdims=False), state
        )
        carry, later = step(nnx.merge(graph, one), carry, given, mine)

        def written(whole: Any, before: Any, after: Any) -> Any:
            if after is before:  # only read: nothing to write back
                return whole
            return jax.lax.dynamic_update_index_in_dim(whole, after, index, 0)

        return (carry, jax.tree.map(written, state, mine, later)), None

    indices = jax.numpy.arange(first, first + count)
    (carry, state), _ = jax.lax.scan(body, (carry, state), (parameters, inputs, indices))
    return carry, state
