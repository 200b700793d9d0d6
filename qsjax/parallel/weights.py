"""The transformer's weights among devices: all of them on each, or the blocks' matrices cut, so that a device has its share of every
layer and the others' only while that layer computes (ZeRO-3, arXiv 1910.02054; FSDP, arXiv 2304.11277)."""

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
"""Leaves of linear layers, quantized or not, beside which scales, biases and transforms are small."""


def weight_placement(mesh: Mesh, cut: bool) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Where a parameter lies, by its dotted name and shape: for `qsjax.dit.load_dit`.

    Args:
        mesh: of `make_mesh`.
        cut: whether devices share the blocks' matrices; False gives everything to each.
    """

    def place(name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, _spec(name, shape, mesh.size) if cut else P())

    return place


def weight_specs(dit: DiT, devices: int | None = None) -> Any:
    """How every parameter is cut: a tree of the model's structure, of partition specifications.

    Args:
        dit: of arrays on a mesh; or of shapes, with `devices`.
        devices: that share the blocks' matrices; None says how the arrays lie.
    """

    def spec(name: str, leaf: Any) -> P:
        return leaf.sharding.spec if devices is None else _spec(name, leaf.shape, devices)

    return map_parameters(spec, dit)


def gathering(dit: DiT, specs: Any) -> DiT:
    """The model inside `jax.shard_map`, whose layers are gathered one at a time.

    Args:
        dit: of a device's own parts; it is changed.
        specs: of `weight_specs`.
    """
    for name in STACKS:
        if not hasattr(dit, name):  # the half without this kind of block
            continue
        cuts = jax.tree.leaves(getattr(specs, name), is_leaf=lambda leaf: isinstance(leaf, P))
        along = tuple(tuple(cut).index(AXIS) - 1 if AXIS in cut else None for cut in cuts)
        if any(position is not None for position in along):
            setattr(dit, name, Shards(getattr(dit, name), along, AXIS))
    return dit


def _spec(name: str, shape: tuple[int, ...], devices: int) -> P:
    """A stack of matrices [layers, K, N] is cut along K if it divides, whose parts lie in one piece; else along N."""
    stack, *_, leaf = name.split(".")
    if stack not in STACKS or leaf not in MATRICES or len(shape) != 3:
        return P()
    for position in (1, 2):
        if shape[position] % devices == 0:
            return P(*(None,) * position, AXIS)
    return P()
