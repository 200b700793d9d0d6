"""Placement of the transformer's weights on a mesh: replicated, or with the matrices of the blocks sharded.

A device then holds its shard of every layer, and gathers the other shards only while that layer runs (ZeRO-3, arXiv 1910.02054;
FSDP, arXiv 2304.11277).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qsjax.dit import DiT
from qsjax.dit.shards import Shards
from qsjax.parallel.mesh import AXIS
from qsjax.params import map_parameters

STACKS = ("double_blocks", "single_blocks")
MATRICES = ("kernel", "packed", "low_bits")
"""Leaves of linear layers that are sharded, quantized or not; scales, biases and transforms are small in comparison."""


def weight_placement(
    mesh: Mesh, shard_weights: bool
) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """The sharding of a parameter by its dotted name and shape, for `qsjax.dit.load_dit`.

    Args:
        mesh: a mesh from `make_mesh`.
        shard_weights: shard the matrices of the blocks; False replicates everything.
    """

    def place(name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, _spec(name, shape, mesh.size) if shard_weights else P())

    return place


def weight_specs(dit: DiT, devices: int | None = None) -> DiT:
    """Partition specs of all parameters: a tree of the model's structure with a spec for each parameter.

    Args:
        dit: a model of arrays on a mesh; or of shapes, with `devices`.
        devices: number of devices that shard the blocks' matrices; None reads the specs from the arrays.
    """

    def spec(name: str, leaf: Any) -> P:
        return leaf.sharding.spec if devices is None else _spec(name, leaf.shape, devices)

    return map_parameters(spec, dit)


def gathering(dit: DiT, specs: DiT) -> DiT:
    """The model for use inside `jax.shard_map`; its layers are gathered one at a time.

    Args:
        dit: model of the device's own shards; it is modified.
        specs: the result of `weight_specs`.
    """
    for name in STACKS:
        if not hasattr(dit, name):  # the half without this kind of block
            continue
        leaves = jax.tree.leaves(getattr(specs, name), is_leaf=lambda leaf: isinstance(leaf, P))
        # Less one, because a gathered layer has no axis of layers.
        along = tuple(tuple(spec).index(AXIS) - 1 if AXIS in spec else None for spec in leaves)
        if any(position is not None for position in along):
            setattr(dit, name, Shards(getattr(dit, name), along, AXIS))
    return dit


def _spec(name: str, shape: tuple[int, ...], devices: int) -> P:
    """A stack of matrices [layers, K, N] is sharded along K, which keeps shards contiguous, if K divides; else along N."""
    stack, *_, leaf = name.split(".")
    if stack not in STACKS or leaf not in MATRICES or len(shape) != 3:
        return P()
    for position in (1, 2):
        if shape[position] % devices == 0:
            return P(*(None,) * position, AXIS)
    return P()
