"""Blocks of one kind as a single module with stacked parameters, run under `jax.lax.scan`.

Sixty blocks compile as two. The carry may hold a state stacked over layers; each layer reads and
writes its own slice in place, so that a donated state is never held twice. Leaves of it that are in the
host's memory are fetched a layer ahead: while one layer computes, the next one's slice is on its way.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from qsjax.dit.shards import layer

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device
Block = TypeVar("Block", bound=nnx.Module)


def stacked(build: Callable[[nnx.Rngs], Block], count: int, rngs: nnx.Rngs) -> Block:
    """`count` blocks made by `build`, every parameter with a leading axis of that length."""
    return nnx.vmap(build)(rngs.split(count))


def over_layers(blocks: Block, function: Callable[[Block], Any]) -> Any:
    """`function` of one block after the other, results stacked over layers.

    Not all at once: packed weights that are widened for a product would be so for every layer.
    """
    graph, parameters = nnx.split(blocks)
    return jax.lax.map(lambda one: function(layer(graph, one)), parameters)


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
        blocks: a stacked module, or `Shards` of one.
        step: `(block, carry, input, layer_state) -> (carry, layer_state)`.
        carry: passes from block to block.
        inputs: pytree with a leading layer axis, one slice a block.
        state: pytree with a leading axis over all layers of the model (not only of this stack), or (). Steps are given
            slices on the device, wherever a leaf is, and a leaf stays where it is.
        first: index of this stack's first block in `state`.

    Returns:
        The last carry and the updated state.
    """
    graph, parameters = nnx.split(blocks)
    count = jax.tree.leaves(parameters)[0].shape[0]
    leaves, structure = jax.tree.flatten(state)
    hosted = [n for n, leaf in enumerate(leaves) if jax.typeof(leaf).memory_space == HOST]

    def fetch(leaves: list[Any], index: Any) -> dict[int, Any]:
        return {n: jax.device_put(_layer(leaves[n], index), DEVICE) for n in hosted}

    def body(loop: Any, scanned: tuple[Any, Any, Any]) -> tuple[Any, None]:
        carry, leaves, fetched = loop
        one, given, index = scanned
        # Behind the last layer it is fetched once more, in vain.
        ahead = fetch(leaves, jnp.minimum(index + 1, first + count - 1))
        mine = [fetched[n] if n in fetched else _layer(x, index) for n, x in enumerate(leaves)]
        carry, later = step(layer(graph, one), carry, given, jax.tree.unflatten(structure, mine))
        later = jax.tree.leaves(later)
        for n, (before, after) in enumerate(zip(mine, later, strict=True)):
            if after is before:  # only read: nothing to write back
                continue
            after = jax.device_put(after, HOST) if n in fetched else after
            leaves[n] = jax.lax.dynamic_update_index_in_dim(leaves[n], after, index, 0)
        return (carry, leaves, ahead), None

    indices = jnp.arange(first, first + count)
    start = (carry, leaves, fetch(leaves, first))
    (carry, leaves, _), _ = jax.lax.scan(body, start, (parameters, inputs, indices))
    return carry, jax.tree.unflatten(structure, leaves)


def _layer(whole: Any, index: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(whole, index, keepdims=False)
