"""The mesh: one axis, along which tokens and heads are shared."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qsjax.errors import InputError

AXIS = "tokens"


def make_mesh(devices: int | Sequence[Any], *, heads: int) -> Mesh:
    """A mesh of devices.

    Args:
        devices: how many of `jax.devices()`, or which.
        heads: of attention; each device computes as many of them as any other.

    Raises:
        InputError: there are not as many devices, or the heads do not divide.
    """
    if isinstance(devices, int):
        there = jax.devices()
        if not 1 <= devices <= len(there):
            raise InputError(
                f"{devices} devices are asked for, and there are {len(there)} ({there[0].device_kind})"
            )
        devices = there[:devices]
    if heads % len(devices):
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise InputError(
            f"{heads} heads cannot be shared among {len(devices)} devices; take one of {', '.join(map(str, fitting))}"
        )
    return Mesh(np.asarray(devices), (AXIS,))


def replicated(mesh: Mesh, tree: Any) -> Any:
    """Arrays of any kind, whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
