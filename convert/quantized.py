"""Quantization without calibration, on the way from PyTorch files to the checkpoint, one tensor at a time.

"rtn" rounds every weight to the nearest multiple of its channel's scale; "quarot" rotates the inputs
of layers by Hadamard matrices first (QuaRot, arXiv:2404.00456), which spreads outliers over channels and changes nothing else;
the recipe says over how many channels.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from convert.component import Component
from convert.containers import TensorInfo
from convert.keymaps import Row
from qsjax.checkpoint import Manifest, StoredComponent
from qsjax.config import from_mapping, to_mapping
from qsjax.dit import DiTConfig
from qsjax.dit.abstract import abstract_dit
from qsjax.errors import InputError
from qsjax.params import parameters
from qsjax.quant import SITES, Recipe, Site, Transform
from qsjax.quant.sites import mergeable, start_rotation
from qsjax.quant.storage import bias_leaves, input_leaves, kernel_leaves, linear_leaves

METHODS = ("rtn", "quarot")


@dataclass(frozen=True)
class Quantization:
    """A method and what is left of a recipe with it.

    Attributes:
        method: one of `METHODS`.
        recipe: without smoothing, and for "rtn" without rotation: what the checkpoint will say.
    """

    method: str
    recipe: Recipe

    @classmethod
    def named(cls, text: str) -> "Quantization":
        """Read METHOD-RECIPE, as in "rtn-w4a8" or "quarot-my/recipe.toml".

        Raises:
            InputError: no such method or recipe, or a recipe without the rotation that the method is about.
        """
        method, _, name = text.partition("-")
        if method not in METHODS or not name:
            raise InputError(
                f"`quantize={text!r}` is not METHOD-RECIPE, as in rtn-w4a8; methods without calibration are {', '.join(METHODS)}"
            )
        recipe = replace(Recipe.load(name), smoothing=False, branch=False)
        if method == "rtn":
            recipe = replace(recipe, rotation="none", rotation_signs=False)
        elif recipe.rotation == "none":
            raise InputError(
                f"recipe {name} has no rotation, and quarot is nothing without one; name rtn-{name}"
            )
        return cls(method, recipe)

    @classmethod
    def stored(cls, component: StoredComponent, source: str) -> "Quantization | None":
        """What a manifest says of its DiT; None if it is not quantized.

        Raises:
            InputError: it was calibrated, and cannot be made again from the PyTorch weights alone.
        """
        if component.recipe is None:
            return None
        method = component.method
        if method not in METHODS:
            raise InputError(
                f"{source}: was calibrated, which the PyTorch weights alone do not repeat; verify it without sources, by its checksums"
            )
        # Conversions of before there were signs do not mention them.
        values = {"rotation_signs": False, **component.recipe}
        return cls(method, from_mapping(Recipe, values, source=f"{source}: recipe"))

    def to_mapping(self) -> dict[str, Any]:
        """What the manifest says of the DiT."""
        return {"recipe": to_mapping(self.recipe), "method": self.method, "clipped": False}


@dataclass(frozen=True)
class QuantizedDiT(Component):
    """A DiT whose leaves are those of its quantized module.

    Attributes:
        config: the DiT's.
        quantization: how.
    """

    config: DiTConfig
    quantization: Quantization

    def outputs(self, row: Row) -> dict[str, TensorInfo]:
        """The leaves that a tensor becomes: itself, or one to five of a quantized layer."""
        path, plain, leaf = _paths(row)
        if not self._is_quantized(row):
            return super().outputs(row)
        stacked = path != plain
        return {
            path + name.removeprefix(plain): replace(info, shape=info.shape[stacked:])
            for name, info in self._parameters.items()
            if name.startswith(f"{plain}.") and name.endswith(".bias") == (leaf == "bias")
        }

    def make(self, row: Row, rows: tuple[int, int] | None) -> dict[str, np.ndarray]:
        """Their values. Weights are quantized in the source's own precision, whatever the others are stored in."""
        if not self._is_quantized(row):
            return super().make(row, rows)
        path, plain, leaf = _paths(row)
        kinds = {self.source.tensors[name].dtype for name in row.sources}
        mixed = len(kinds) > 1 or np.dtype(np.float64) in kinds
        array = row.to_leaf(self.read, np.dtype(np.float32) if mixed else None)
        kind, _, layer = plain.partition(".")
        sites = [site for site in SITES.get(kind, ()) if site.linear == layer]
        with on_host():
            if sites:
                # "single_blocks.3.linear2" has the layers linear2.attention and linear2.mlp.
                start = path.removesuffix(layer)
                named = {
                    f"{start}{site.layer}": self._site(site, kind, leaf, array) for site in sites
                }
            elif leaf == "bias":
                named = {path: {"bias": array.astype(np.float32)}}
            else:
                named = {path: linear_leaves(array, self._recipe.precision(plain))}
        return {
            f"{name}.{part}": value
            for name, leaves in named.items()
            for part, value in leaves.items()
        }

    def details(self) -> dict[str, Any]:
        """Recipe and method, for the manifest."""
        return self.quantization.to_mapping()

    def digest(self) -> str:
        """That of the source, with the quantization."""
        content = [super().digest(), self.quantization.to_mapping()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def _recipe(self) -> Recipe:
        return self.quantization.recipe

    @cached_property
    def _linears(self) -> frozenset[str]:
        return frozenset(_paths(row)[1] for row in self.rows if row.leaf.endswith(".kernel"))

    @cached_property
    def _parameters(self) -> dict[str, TensorInfo]:
        """Every parameter of the quantized module, which is what loading will ask for."""
        model = abstract_dit(self.config, dtype=np.float32, recipe=self._recipe)
        return {
            name: TensorInfo(array.shape, np.dtype(array.dtype))
            for name, array in parameters(model).items()
        }

    @cached_property
    def _transforms(self) -> dict[str, dict[str, Transform]]:
        """Kind of block -> transform -> the same for all its blocks."""
        sizes = (self.config.hidden_size, self.config.mlp_size, self.config.head_dim)
        return {
            kind: {
                site.transform: Transform(None, start_rotation(site, self._recipe, *sizes))
                if site.transform in mergeable(kind, self._recipe)
                else Transform()
                for site in sites
            }
            for kind, sites in SITES.items()
        }

    def _is_quantized(self, row: Row) -> bool:
        _, plain, _ = _paths(row)
        return plain in self._linears and self._recipe.precision(plain).quantized

    def _site(self, site: Site, kind: str, leaf: str, array: np.ndarray) -> dict[str, np.ndarray]:
        transforms, width = self._transforms[kind], self.config.hidden_size
        if leaf == "bias":
            return bias_leaves(site, array, transforms, width)
        precision = self._recipe.precision(f"{kind}.{site.linear}")
        return {
            **kernel_leaves(site, array, transforms, precision, width),
            **input_leaves(site, transforms[site.transform]),
        }


def with_quantization(
    components: Mapping[str, Component], quantization: Quantization | None
) -> dict[str, Component]:
    """The components with the DiT, and nothing else, quantized; unchanged for None.

    Raises:
        InputError: there is no DiT, or the recipe does not fit it.
    """
    if quantization is None:
        return dict(components)
    if "dit" not in components:
        raise InputError("`quantize` is for the transformer, and none is to be converted; name one")
    dit = components["dit"]
    values = {field.name: getattr(dit, field.name) for field in fields(dit)}
    return {**components, "dit": QuantizedDiT(**values, quantization=quantization)}


def require(manifest: Manifest, quantize: str) -> None:
    """Refuse a checkpoint whose DiT is not quantized as METHOD-RECIPE says.

    Raises:
        InputError: it is not, or there is no such method or recipe.
    """
    component, stored = manifest.components.get("dit"), None
    if component is not None and component.method in METHODS:
        stored = Quantization.stored(component, str(manifest.directory))
    if stored != Quantization.named(quantize):
        raise InputError(
            f"{manifest.directory}: exists and its transformer is not {quantize}; leave `quantize` out to verify it as it is, "
            f"or pass `overwrite=True` to write it anew"
        )


def _paths(row: Row) -> tuple[str, str, str]:
    """Of "double_blocks.3.img.qkv.kernel": the path, the path without block numbers, the last name."""
    path, _, leaf = row.leaf.rpartition(".")
    return path, ".".join(part for part in path.split(".") if not part.isdecimal()), leaf


@contextmanager
def on_host() -> Iterator[None]:
    """Compute on the CPU where jax has it, so that an accelerator's matmuls do not round the rotations."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        yield
        return
    with jax.default_device(host):
        yield
