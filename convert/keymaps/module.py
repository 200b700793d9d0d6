"""A Flax module filled from PyTorch tensors in memory: for small models, tests and notebooks."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.keymaps.detect import ComponentConfig, Layout, check, detect
from convert.keymaps.llama import LLAMA_CPP
from qsjax.errors import CheckpointError
from qsjax.params import Module, find_parameter, map_parameters, parameters


def load_module(
    module: Module,
    component: str,
    layout: str | None,
    state_dict: Mapping[str, np.ndarray],
    config: ComponentConfig,
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
        CheckpointError: tensors are missing, surplus or of another shape, are llama.cpp's, or the module has other parameters.
    """
    detected = detect(component, config, state_dict, source="state dict")
    if layout is not None and detected.name != layout:
        detected = Layout(layout)
    if detected.name == LLAMA_CPP:
        raise CheckpointError(
            "the state dict has llama.cpp's names, whose query and key rows are in another order; convert the GGUF file itself"
        )
    shapes = {name: array.shape for name, array in state_dict.items()}
    rows, _ = check(component, config, detected, shapes, source="state dict")
    wanted = parameters(module)
    arrays: dict[str, np.ndarray] = {}
    left = {
        name: set(range(target.shape[0])) if target.ndim else {0} for name, target in wanted.items()
    }
    for row in rows:
        leaf = row.to_leaf(state_dict.__getitem__)
        place = find_parameter(row.leaf, wanted)
        if place is None:
            raise CheckpointError(
                f"the module has no parameter for {row.leaf}; build it from the same config"
            )
        parameter, index = place
        target = wanted[parameter]
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

    def fill(name: str, old: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(arrays[name]).astype(old.dtype)

    nnx.update(module, nnx.state(map_parameters(fill, module)))
    return module
