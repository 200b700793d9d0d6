"""Calibrating a DiT that is in memory: what the demo and the evaluations do with the tiny model."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from qsjax.calibration.loop import Source, calibrate_blocks
from qsjax.calibration.methods import Method
from qsjax.calibration.refiner import layer_leaves, rounded_refiner
from qsjax.calibration.rounding import Rounded
from qsjax.calibration.samples import Samples
from qsjax.calibration.trajectories import Trajectories
from qsjax.calibration.tuning import tune
from qsjax.calibration.variables import effective_recipe
from qsjax.dit import DiT
from qsjax.params import Module, map_parameters, parameters
from qsjax.quant import Recipe, with_quantized_layers
from qsjax.quant.surgery import iterate_linears


class ModuleSource(Source):
    """Blocks of a module whose parameters are stacked."""

    def __init__(self, dit: DiT) -> None:
        self.config, self.ends = dit.config, dit

    def leaves(self, kind: str, index: int) -> dict[str, np.ndarray]:
        """One block's float weights."""
        stacks = parameters(getattr(self.ends, kind))
        return {name: np.asarray(stack)[index] for name, stack in stacks.items()}


def calibrate_module(
    dit: DiT,
    samples: Samples,
    recipe: Recipe,
    method: Method,
    *,
    trajectories: Trajectories | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[DiT, list[dict[str, Any]]]:
    """A quantized copy of a DiT.

    Args:
        dit: float weights; not changed.
        samples: of `collect`.
        recipe: bits, and the transforms that `method` may use.
        method: how transforms and clips are found.
        trajectories: of the float model, for methods that tune end to end.
        seed: of the order of samples.
        progress: show a bar.

    Returns:
        The quantized DiT, whose integers are packed, and a report for each block.

    Raises:
        ValueError: the method tunes, and there are no trajectories.
    """
    if method.tune_steps and trajectories is None:
        raise ValueError(f"method {method.name} tunes end to end: give it trajectories")
    stored, reports = effective_recipe(recipe, method), []
    blocks: dict[str, list[np.ndarray]] = {}

    def keep(kind: str, _: int, leaves: Mapping[str, np.ndarray], report: dict[str, Any]) -> None:
        for name, leaf in leaves.items():
            blocks.setdefault(f"{kind}.{name}", []).append(leaf)
        reports.append(report)

    source = ModuleSource(dit)
    calibrate_blocks(source, samples, recipe, method, keep, seed=seed, progress=progress)
    rounded = rounded_refiner(dit.refiner, samples, stored, method)
    leaves = {name: np.stack(parts) for name, parts in blocks.items()}
    leaves |= ends_leaves(dit, stored, rounded)
    abstract = nnx.eval_shape(
        lambda: with_quantized_layers(nnx.merge(*nnx.split(dit)), stored, clipped=method.clipped)
    )
    quantized = filled(abstract, dit, leaves)
    if trajectories is not None and method.tune_steps:
        tuned, _ = tune(quantized, trajectories, method, seed=seed, progress=progress)
        quantized = filled(abstract, dit, leaves | tuned)
    return quantized, reports


def ends_leaves(dit: DiT, recipe: Recipe, rounded: Mapping[str, Rounded]) -> dict[str, np.ndarray]:
    """The quantized layers outside the blocks (the refiner's); those that are not `rounded`, to nearest."""
    leaves_of_ends: dict[str, np.ndarray] = {}
    for path, (_, _, linear) in iterate_linears(dit):
        if path.startswith(("double_blocks.", "single_blocks.")):
            continue
        if not recipe.precision(path).quantized:
            continue
        kernel = linear.kernel.get_value()
        # "refiner.blocks.qkv" is a stack of "refiner.blocks.0.qkv" and so on.
        names = [path]
        if kernel.ndim == 3:
            parent, _, name = path.rpartition(".")
            names = [f"{parent}.{number}.{name}" for number in range(len(kernel))]
        matrices = kernel.reshape(-1, *kernel.shape[-2:])
        stored = [
            layer_leaves(name, matrix, recipe, rounded)
            for name, matrix in zip(names, matrices, strict=True)
        ]
        for name in stored[0]:
            stack = np.stack([leaves[name] for leaves in stored])
            leaves_of_ends[f"{path}.{name}"] = stack if kernel.ndim == 3 else stack[0]
        if linear.bias is not None:
            leaves_of_ends[f"{path}.bias"] = np.asarray(linear.bias.get_value(), np.float32)
    return leaves_of_ends


def filled(abstract: Module, original: nnx.Module, leaves: Mapping[str, np.ndarray]) -> Module:
    """An abstract quantized module with these leaves, and all others from its float original."""
    old = parameters(original)

    def fill(name: str, wanted: jax.ShapeDtypeStruct) -> Array:
        value = jnp.asarray(leaves[name]) if name in leaves else old[name]
        if value.shape != wanted.shape:
            raise ValueError(f"{name} has shape {value.shape}, the module wants {wanted.shape}")
        return value

    return map_parameters(fill, abstract)
