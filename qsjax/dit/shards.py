"""Blocks whose parameters are sharded over devices: those of a layer are gathered only while it runs."""

from typing import Generic, TypeVar

import jax
from flax import nnx

Block = TypeVar("Block", bound=nnx.Module)


class Shards(nnx.Module, Generic[Block]):
    """Stands for a stack of blocks inside `jax.shard_map`.

    Attributes:
        blocks: a stacked module, or one layer of it, with this device's shards as parameters.
        along: for each leaf the sharded axis of a layer's array; None where it is replicated.
        axis: name of the mesh axis.
    """

    def __init__(self, blocks: Block, along: tuple[int | None, ...], axis: str) -> None:
        self.blocks, self.along, self.axis = blocks, along, axis

    def whole(self) -> Block:
        """The layer with its parameters gathered; `blocks` must be a layer, not a stack."""
        graph, parameters = nnx.split(self.blocks)
        leaves, structure = jax.tree.flatten(parameters)

        def gathered(leaf: jax.Array, along: int | None) -> jax.Array:
            if along is None:
                return leaf
            return jax.lax.all_gather(leaf, self.axis, axis=along, tiled=True)

        leaves = [gathered(leaf, along) for leaf, along in zip(leaves, self.along, strict=True)]
        return nnx.merge(graph, jax.tree.unflatten(structure, leaves))


def layer(graph: nnx.GraphDef[Block], parameters: object) -> Block:
    """A block made of one layer's parameters, gathered where they are sharded."""
    block = nnx.merge(graph, parameters)
    return block.whole() if isinstance(block, Shards) else block
