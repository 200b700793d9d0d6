"""The mesh of devices, whose one axis shards tokens and heads."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from qsjax.errors import InputError

AXIS = "tokens"

Tree = TypeVar("Tree")


def make_mesh(devices: int | Sequence[jax.Device]) -> Mesh:
    """A mesh of devices.

    Args:
        devices: the devices, or how many of `jax.devices()`.

    Raises:
        InputError: there are fewer devices, or a host has none of them.
    """
    if isinstance(devices, int):
        present = jax.devices()
        if not 1 <= devices <= len(present):
            raise InputError(
                f"{devices} devices are asked for, and there are {len(present)} ({present[0].device_kind})"
            )
        devices = present[:devices]
    if idle := set(range(jax.process_count())) - {device.process_index for device in devices}:
        raise InputError(
            f"{len(devices)} devices are asked for, and host {min(idle)} has none of them; "
            f"take more, or start fewer hosts"
        )
    return Mesh(np.asarray(devices), (AXIS,))


def check_heads(mesh: Mesh, heads: int) -> None:
    """Check that all devices get equally many heads. Sparse attention needs it, because its cache is sharded by heads.

    Raises:
        InputError: the number of devices does not divide the number of heads.
    """
    if heads % mesh.size:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise InputError(
            f"{heads} heads cannot be shared among {mesh.size} devices, as sparse attention does; "
            f"take one of {', '.join(map(str, fitting))}, or dense attention"
        )


def replicated(mesh: Mesh, tree: Tree) -> Tree:
    """Replicate the arrays of a tree over the mesh. With several hosts, each passes its own copy; all copies must be equal."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)

    def shared(leaf: ArrayLike) -> jax.Array:
        copies = [jax.device_put(leaf, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(jnp.shape(leaf), everywhere, copies)

    return jax.tree.map(shared, tree)


def gathered(mesh: Mesh, tree: Tree) -> Tree:
    """Gather the global arrays of a tree onto this process's first device of the mesh."""
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
