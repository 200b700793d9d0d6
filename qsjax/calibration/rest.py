"""What calibration copies: everything outside the blocks, whose quantized layers (the refiner's) are packed."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from qsjax.calibration.refiner import layer_leaves
from qsjax.calibration.rounding import Rounded
from qsjax.calibration.source import in_block
from qsjax.checkpoint import CheckpointWriter, Manifest, load_item
from qsjax.quant import Recipe


def copy_rest(
    manifest: Manifest,
    writer: CheckpointWriter,
    recipe: Recipe,
    components: Collection[str],
    rounded: Mapping[str, Rounded],
) -> dict[str, list[str]]:
    """Copy everything outside the blocks of some components, quantized layers (the refiner's) as they were `rounded`, or to nearest.

    Returns:
        Component -> items.
    """
    finished, names = writer.finished_items(), {}
    for component in components:
        stored, names[component] = manifest.component(component), []
        for item, specifications in stored.items.items():
            if component == "dit" and any(map(in_block, specifications)):
                continue
            names[component].append(item)
            if f"{component}/{item}" in finished:
                continue
            paths = {leaf: _without_index(leaf.rpartition(".")[0]) for leaf in specifications}
            if component == "dit" and any(recipe.precision(p).quantized for p in paths.values()):
                loaded = load_item(manifest, component, item)
                writer.write_item(component, item, _rounded(loaded, paths, recipe, rounded))
            else:
                writer.copy_item(manifest.directory, component, item, specifications)
    return names


def _rounded(
    leaves: Mapping[str, Any],
    paths: Mapping[str, str],
    recipe: Recipe,
    rounded: Mapping[str, Rounded],
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for leaf, value in leaves.items():
        layer, _, name = leaf.rpartition(".")
        precision = recipe.precision(paths[leaf])
        if not precision.quantized or name not in ("kernel", "bias"):
            found[leaf] = np.asarray(value)
        elif name == "bias":
            found[leaf] = np.asarray(value, np.float32)
        else:
            quantized = layer_leaves(layer, value, recipe, rounded)
            found |= {f"{layer}.{part}": array for part, array in quantized.items()}
    return found


def _without_index(path: str) -> str:
    return ".".join(part for part in path.split(".") if not part.isdecimal())
