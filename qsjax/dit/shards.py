"""Blocks of which every device has a part: a layer's parameters are whole only while it is its turn."""

from typing import Generic, TypeVar

import jax
from flax import nnx

Block = TypeVar("Block", bound=nnx.Module)


class Shards(nnx.Module, Generic[Block]):
    """Stacked blocks inside `jax.shard_map`, in the place of the stack.

    Attributes:
        blocks: a stacked module, or one layer of it, of a device's own parts.
        along: for each leaf the axis of a layer's array that is cut; None where every device has all of it.
        axis: of devices.
    """

    def __init__(self, blocks: Block, along: tuple[int | None, ...], axis: str) -> None:
        self.blocks, self.along, self.axis = blocks, along, axis

    def whole(self) -> Block:
        """One layer with what the other devices have of it; `blocks` is a layer, not a stack."""
        graph, parameters = nnx.split(self.blocks)
        leaves, structure = jax.tree.flatten(parameters)

        def gathered(leaf: jax.Array, along: int | None) -> jax.Array:
            if along is None:
                return leaf
            return jax.lax.all_gather(leaf, self.axis, axis=along, tiled=True)

        leaves = [gathered(leaf, along) for leaf, along in zip(leaves, self.along, strict=True)]
        return nnx.merge(graph, jax.tree.unflatten(structure, leaves))


def layer(graph: nnx.GraphDef[Block], parameters: object) -> Block:
    """A block from one layer's parameters, gathered if devices share them."""
    block = nnx.merge(graph, parameters)
    return block.whole() if isinstance(block, Shards) else block
