"""Stacked blocks run under `jax.lax.scan`, with a state of which each layer has a slice.

Sixty blocks compile as two. Each layer reads and writes its own slice of the state in place, so that a donated state
is never held twice. Leaves in the host's memory are fetched a layer ahead: while one layer computes, the next one's
slice is on its way. For a gradient, the backward pass may keep no more of a block than its input.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from qsjax.dit.shards import layer
from qsjax.layers.stack import depth, take_layer

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device
Kept = Literal["everything", "inputs", "inputs on the host"]
"""What a backward pass finds of each block: all that it needs; or its input, from which it computes the block again."""
_INPUT = "block_input"
Block = TypeVar("Block", bound=nnx.Module)
Carry = TypeVar("Carry")
Inputs = TypeVar("Inputs")
State = TypeVar("State")
Result = TypeVar("Result")


def over_layers(blocks: Block, function: Callable[[Block], Result]) -> Result:
    """`function` of one block after the other, results stacked over layers.

    A vmap would dequantize the packed weights of all layers at once.
    """
    graph, parameters = nnx.split(blocks)
    return jax.lax.map(lambda own: function(layer(graph, own)), parameters)


def scan_layers(
    blocks: Block,
    step: Callable[[Block, Carry, Inputs, State], tuple[Carry, State]],
    carry: Carry,
    inputs: Inputs,
    state: State,
    *,
    first: int = 0,
    kept: Kept = "everything",
) -> tuple[Carry, State]:
    """Run blocks one after the other.

    Args:
        blocks: a stacked module, or `Shards` of one.
        step: `(block, carry, input, layer_state) -> (carry, layer_state)`.
        carry: passes from block to block.
        inputs: pytree with a leading layer axis, one slice a block.
        state: pytree with a leading axis over all layers of the model (not only of this stack), or (). Steps get slices
            on the device; a leaf in the host's memory stays there.
        first: index of this stack's first block in `state`.
        kept: for the backward pass; without a gradient it changes nothing.

    Returns:
        The last carry and the updated state.
    """
    graph, parameters = nnx.split(blocks)
    count = depth(parameters)
    leaves, structure = jax.tree.flatten(state)
    hosted = [n for n, leaf in enumerate(leaves) if jax.typeof(leaf).memory_space == HOST]

    def fetch(leaves: list[Array], index: Array | int) -> dict[int, Array]:
        return {n: jax.device_put(take_layer(leaves[n], index), DEVICE) for n in hosted}

    def body(
        loop: tuple[Carry, list[Array], dict[int, Array]],
        scanned: tuple[object, Inputs, Array],
    ) -> tuple[tuple[Carry, list[Array], dict[int, Array]], None]:
        carry, leaves, fetched = loop
        if kept == "inputs on the host":
            carry = checkpoint_name(carry, _INPUT)
        own, block_input, index = scanned
        # At the last layer there is no next one: its own slice is fetched once more, and not used.
        ahead = fetch(leaves, jnp.minimum(index + 1, first + count - 1))
        before = [
            fetched[n] if n in fetched else take_layer(x, index) for n, x in enumerate(leaves)
        ]
        layer_state = jax.tree.unflatten(structure, before)
        carry, layer_state = step(layer(graph, own), carry, block_input, layer_state)
        after = jax.tree.leaves(layer_state)
        for n, (old, new) in enumerate(zip(before, after, strict=True)):
            if new is old:  # only read: nothing to write back
                continue
            new = jax.device_put(new, HOST) if n in fetched else new
            leaves[n] = jax.lax.dynamic_update_index_in_dim(leaves[n], new, index, 0)
        return (carry, leaves, ahead), None

    indices = jnp.arange(first, first + count)
    start = (carry, leaves, fetch(leaves, first))
    (carry, leaves, _), _ = jax.lax.scan(
        _rematerialized(body, kept), start, (parameters, inputs, indices)
    )
    return carry, jax.tree.unflatten(structure, leaves)


def _rematerialized(body: Callable[..., Result], kept: Kept) -> Callable[..., Result]:
    if kept == "everything":
        return body
    if kept == "inputs":
        return jax.checkpoint(body)
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return partial(jax.checkpoint, policy=policy)(body)
