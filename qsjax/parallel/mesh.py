"""The mesh: one axis, along which tokens and heads are shared."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qsjax.errors import InputError

AXIS = "tokens"


def make_mesh(devices: int | Sequence[Any]) -> Mesh:
    """A mesh of devices.

    Args:
        devices: how many of `jax.devices()`, or which.

    Raises:
        InputError: there are not as many devices, or a host has none of them.
    """
    if isinstance(devices, int):
        there = jax.devices()
        if not 1 <= devices <= len(there):
            raise InputError(
                f"{devices} devices are asked for, and there are {len(there)} ({there[0].device_kind})"
            )
        devices = there[:devices]
    if idle := set(range(jax.process_count())) - {device.process_index for device in devices}:
        raise InputError(
            f"{len(devices)} devices are asked for, and host {min(idle)} has none of them; "
            f"take more, or start fewer hosts"
        )
    return Mesh(np.asarray(devices), (AXIS,))


def check_heads(mesh: Mesh, heads: int) -> None:
    """See that each device can have as many heads as any other, as sparse attention needs, whose cache lies with its heads.

    Raises:
        InputError: they do not divide.
    """
    if heads % mesh.size:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise InputError(
            f"{heads} heads cannot be shared among {mesh.size} devices, as sparse attention does; "
            f"take one of {', '.join(map(str, fitting))}, or dense attention"
        )


def replicated(mesh: Mesh, tree: Any) -> Any:
    """Arrays of any kind, whole on every device. Where there are several hosts each brings its own copy, and they are equal."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)

    def shared(leaf: Any) -> jax.Array:
        copies = [jax.device_put(leaf, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(jnp.shape(leaf), everywhere, copies)

    return jax.tree.map(shared, tree)


def gathered(mesh: Mesh, tree: Any) -> Any:
    """Global arrays, whole on this process's first device of the mesh."""
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
