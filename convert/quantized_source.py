"""The transformer of a quantized checkpoint as it is stored, for the way out; docs/format.md says what it means."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from convert.containers import Source, TensorInfo
from convert.containers.listing import first_few
from qsjax.checkpoint import MANIFEST, Manifest, read_item
from qsjax.checkpoint.schema import Leaf
from qsjax.config import from_mapping, to_mapping
from qsjax.dit.abstract import abstract_dit
from qsjax.dit.config import DiTConfig
from qsjax.dit.loading import stored_recipe
from qsjax.errors import CheckpointError, InputError
from qsjax.params import dotted, find_parameter, parameters
from qsjax.quant import QuantizedLinear, Recipe

FORMAT, VERSION = "qsjax-quantized", "1"


class QuantizedSource(Source):
    """The leaves of a quantized transformer, under their own names; one is held at a time.

    Attributes:
        component_config: of the transformer.
        metadata: format, recipe, method, sizes, and the precision of every quantized layer, each as JSON.

    Raises:
        CheckpointError: the stored leaves are not those of the configuration and the recipe.
    """

    container = "quantized checkpoint"

    def __init__(self, manifest: Manifest) -> None:
        component, place = manifest.component("dit"), f"{manifest.directory}: dit"
        self.component_config = from_mapping(DiTConfig, component.config, source=f"{place} config")
        recipe = stored_recipe(manifest)
        assert recipe is not None
        try:
            dit = abstract_dit(self.component_config, recipe=recipe, clipped=component.clipped)
        except InputError as error:
            raise CheckpointError(f"{place}: {error}") from error
        self.files = (manifest.directory / MANIFEST,)
        self._manifest = manifest
        self._items: dict[str, str] = {}
        specifications: dict[str, Leaf] = {}
        for item, leaf, spec in manifest.leaves("dit"):
            self._items[leaf], specifications[leaf] = item, spec
        wanted = parameters(dit)
        _check(place, specifications, wanted)
        self.tensors = {
            leaf: TensorInfo(tuple(spec["shape"]), np.dtype(spec["dtype"]))
            for leaf, spec in specifications.items()
        }
        method = component.method or "calibrated"
        self.metadata = self._metadata(recipe, method, _layers(dit, specifications, wanted))

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        array = read_item(self._manifest, "dit", self._items[name], {name})[name]
        return array if rows is None else array[slice(*rows)].copy()

    def close(self) -> None:
        """Nothing is open."""

    def _metadata(
        self, recipe: Recipe, method: str, layers: Mapping[str, Mapping[str, int]]
    ) -> dict[str, str]:
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "method": method,
            "recipe": json.dumps(to_mapping(recipe)),
            "config": json.dumps(self.component_config.to_diffusers()),
            "layers": json.dumps(layers),
        }


def _check(place: str, stored: Mapping[str, Leaf], wanted: Mapping[str, Any]) -> None:
    """Every parameter is there once, for each of its blocks, in its shape."""
    found: dict[str, set[int | None]] = {}
    problems: list[str] = []
    for leaf, spec in stored.items():
        parameter, index = find_parameter(leaf, wanted) or ("", None)
        array = wanted.get(parameter)
        if array is None or (index is not None and index >= array.shape[0]):
            problems.append(f"{leaf} is no part of it")
            continue
        found.setdefault(parameter, set()).add(index)
        shape = array.shape if index is None else array.shape[1:]
        if "rows" in spec or tuple(spec["shape"]) != shape:
            problems.append(f"{leaf} should have the shape {list(shape)}")
        elif (spec["dtype"] == "int8") != (array.dtype == np.int8):
            problems.append(f"{leaf} should not be {spec['dtype']}")
    for name, array in wanted.items():
        count = 1 if None in found.get(name, set()) else array.shape[0]
        if len(found.get(name, ())) < count:
            problems.append(f"{name} is absent, or of some blocks")
    if problems:
        raise CheckpointError(
            f"{place} does not fit its own configuration and recipe: {first_few(problems)}; get the checkpoint again, or quantize it again"
        )


def _layers(
    dit: nnx.Module, stored: Mapping[str, Leaf], wanted: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """Quantized layer -> its rows, the bits of its packed integers, and those of its input."""
    kinds = {
        dotted(*path): module
        for path, module in nnx.iter_modules(dit)
        if isinstance(module, QuantizedLinear)
    }
    layers: dict[str, dict[str, int]] = {}
    for leaf in stored:
        name = leaf.removesuffix(".packed")
        found = find_parameter(leaf, wanted)
        if name == leaf or found is None:
            continue
        layer = kinds[found[0].removesuffix(".packed")]
        layers[name] = {
            "rows": layer.rows,
            "bits": layer.precision.container,
            "activations": layer.precision.activations,
        }
    return layers
