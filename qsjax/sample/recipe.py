"""Sampling recipes: sparse attention, residual reuse and step skipping as a file, and the weights that they were chosen for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qsjax.config import configs_directory, from_mapping, load_toml, preset
from qsjax.errors import InputError
from qsjax.residual import Residual
from qsjax.sample.skip import Skip
from qsjax.sample.sparse import SparsePlan
from qsjax.sparse import Sparsity

KIND = "sampling"
"""Folder of the presets in configs/."""


@dataclass(frozen=True, kw_only=True)
class SamplingRecipe:
    """What `--recipe` names.

    Attributes:
        weights: quantization recipe of the checkpoints that it is for; "" is any.
        interval, dense_steps, dense_layers, scores, sparsity, residual: of `SparsePlan`.
        skip: steps that are left out.
    """

    weights: str = ""
    interval: int = 5
    dense_steps: int = 1
    dense_layers: tuple[int, ...] = ()
    scores: str = "float"
    sparsity: Sparsity = field(default_factory=Sparsity)
    residual: Residual = field(default_factory=Residual)
    skip: Skip = field(default_factory=Skip)

    @classmethod
    def load(cls, name: str, changes: Mapping[str, Any] | None = None) -> "SamplingRecipe":
        """A preset of configs/sampling, or a TOML file.

        Args:
            name: of the preset, or a path that ends in .toml; "" has the defaults of all fields.
            changes: values by dotted name ("sparsity.density", "interval"), which win.

        Raises:
            InputError: no such recipe, an unknown field, or a value that does not fit.
        """
        values: dict[str, Any] = {}
        if name:
            values = load_toml(Path(name)) if name.endswith(".toml") else preset(KIND, name)
        for dotted, value in (changes or {}).items():
            section, _, entry = dotted.rpartition(".")
            (values.setdefault(section, {}) if section else values)[entry] = value
        return from_mapping(cls, values, source=f"recipe {name}" if name else "recipe")

    @classmethod
    def of(cls, recipe: "RecipeLike") -> "SamplingRecipe":
        """A recipe of whatever names or holds it: a preset, a TOML file, its contents, itself.

        Raises:
            InputError: as `load`.
        """
        if isinstance(recipe, SamplingRecipe):
            return recipe
        if isinstance(recipe, Mapping):
            return from_mapping(cls, recipe, source="recipe")
        return cls.load(os.fspath(recipe))

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Names in configs/sampling."""
        return tuple(sorted(path.stem for path in (configs_directory() / KIND).glob("*.toml")))

    @property
    def skipping(self) -> Skip | None:
        """Which steps are left out; None where none are."""
        return self.skip if self.skip.threshold else None

    def plan(self, weights: str | None) -> SparsePlan | None:
        """The plan for a checkpoint; None where the mask is "dense".

        Args:
            weights: the checkpoint's own quantization recipe; None is full precision.

        Raises:
            InputError: the recipe is for other weights.
        """
        if self.weights and self.weights != weights:
            found = f"in {weights}" if weights else "in full precision"
            raise InputError(
                f"this recipe is for a checkpoint in {self.weights}, this one is {found};"
                f" make one with qsjax calibrate --recipe {self.weights}, or name another recipe"
            )
        if self.sparsity.mask == "dense":
            return None
        plan = SparsePlan()
        return replace(plan, **{name: getattr(self, name) for name in plan.__dataclass_fields__})


RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | SamplingRecipe
"""What names or holds a recipe: a preset of configs/sampling, a TOML file, its contents, or itself."""
