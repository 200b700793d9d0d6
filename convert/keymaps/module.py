"""A Flax module filled from PyTorch tensors in memory: for small models, tests and notebooks."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.keymaps.detect import Layout, check, detect
from qsjax.errors import CheckpointError

Module = TypeVar("Module", bound=nnx.Module)


def load_module(
    module: Module,
    component: str,
    layout: str | None,
    state_dict: Mapping[str, np.ndarray],
    config: Any,
) -> Module:
    """Fill a module with the tensors of a PyTorch state dict, converted to the parameters' dtypes.

    Args:
        module: the Flax module to fill, in place; an abstract one (`nnx.eval_shape`) will do, and spares its
            random initialization.
        component: "dit", "vae", "llama" or "clip".
        layout: the names' layout ("tencent", "diffusers", "comfy", "hunyuan", "transformers"); None detects it.
        state_dict: PyTorch names -> numpy arrays.
        config: the component's config dataclass.

    Returns:
        The same module.

    Raises:
        CheckpointError: tensors are missing, surplus or of another shape, or the module has other parameters.
    """
    found = detect(component, config, state_dict, source="state dict")
    if layout is not None and found.name != layout:
        found = Layout(layout)
    shapes = {name: array.shape for name, array in state_dict.items()}
    rows, _ = check(component, config, found, shapes, source="state dict")
    state = nnx.state(module)
    variables = {
        ".".join(map(str, path)): (path, value) for path, value in nnx.to_flat_state(state)
    }
    arrays: dict[str, np.ndarray] = {}
    left = {
        name: set(range(value.get_value().shape[0])) if value.get_value().ndim else {0}
        for name, (_, value) in variables.items()
    }
    for row in rows:
        leaf = row.to_leaf(state_dict.__getitem__)
        parameter, index = place(row.leaf, variables)
        target = variables[parameter][1].get_value()
        expected = target.shape if index is None else target.shape[1:]
        if leaf.shape != expected:
            raise CheckpointError(
                f"{row.leaf} has shape {leaf.shape}, the module wants {expected}; build it from the same config"
            )
        if index is None:
            arrays[parameter] = leaf
            left[parameter] = set()
        else:
            stack = arrays.setdefault(parameter, np.empty(target.shape, leaf.dtype))
            stack[index] = leaf
            left[parameter].discard(index)
    if missing := [name for name, indices in left.items() if indices]:
        raise CheckpointError(
            f"the key table leaves parameters unfilled: {', '.join(missing)}; build the module from the same config"
        )
    flat = [
        (path, value.replace(jnp.asarray(arrays[name]).astype(value.get_value().dtype)))
        for name, (path, value) in variables.items()
        if name in arrays
    ]
    nnx.update(module, nnx.from_flat_state(flat))
    return module


def place(leaf: str, parameters: Mapping[str, Any]) -> tuple[str, int | None]:
    """The parameter a leaf fills: itself, or index i of a stacked one ("blocks.3.a" -> "blocks.a", 3).

    Raises:
        CheckpointError: there is no such parameter.
    """
    if leaf in parameters:
        return leaf, None
    parts = leaf.split(".")
    for position, part in enumerate(parts):
        stacked = ".".join(parts[:position] + parts[position + 1 :])
        if part.isdecimal() and stacked in parameters:
            return stacked, int(part)
    raise CheckpointError(f"the module has no parameter for {leaf}; build it from the same config")
