"""Sampling recipes: files that set sparse attention, residual reuse and step skipping, and name the weights they are for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qsjax.config import configs_directory, from_mapping, load_toml, nearest, preset, to_mapping
from qsjax.errors import InputError
from qsjax.settings.plan import SamplingPlan
from qsjax.settings.residual import Residual
from qsjax.settings.skip import Skip
from qsjax.settings.sparse import SparsePlan
from qsjax.settings.sparsity import Sparsity

KIND = "sampling"
"""Folder of the presets in configs/."""
SECTIONS: dict[str, type] = {
    "sparse": SparsePlan,
    "sparsity": Sparsity,
    "residual": Residual,
    "skip": Skip,
}
"""Section of a file, and prefix of an option -> the dataclass whose fields it sets."""


@dataclass(frozen=True, kw_only=True)
class SamplingRecipe:
    """What `--recipe` names.

    Attributes:
        weights: quantization recipe of the checkpoints that it is for; "" fits any checkpoint.
        sparse: sparse attention; None is dense.
        skip: rule for leaving out steps; None computes all steps.
    """

    weights: str = ""
    sparse: SparsePlan | None = None
    skip: Skip | None = None

    @classmethod
    def load(cls, name: str) -> "SamplingRecipe":
        """Load a preset of configs/sampling, or a TOML file.

        Args:
            name: name of a preset, or a path that ends in .toml.

        Raises:
            InputError: no such recipe, an unknown field, or a value that does not fit.
        """
        values = load_toml(Path(name)) if name.endswith(".toml") else preset(KIND, name)
        return cls.of_sections(values, source=f"recipe {name}")

    @classmethod
    def of(cls, recipe: "RecipeLike") -> "SamplingRecipe":
        """Make a recipe from the name of a preset, the path or the contents of a TOML file, or a recipe.

        Raises:
            InputError: as `load`.
        """
        if isinstance(recipe, SamplingRecipe):
            return recipe
        if isinstance(recipe, Mapping):
            return cls.of_sections(recipe, source="recipe")
        return cls.load(os.fspath(recipe))

    @classmethod
    def of_plan(cls, plan: SamplingPlan) -> "SamplingRecipe":
        """The part of a plan that a recipe describes."""
        return cls(sparse=plan.sparse, skip=plan.skip)

    @classmethod
    def of_sections(
        cls, values: Mapping[str, Any], *, source: str, base: "SamplingRecipe | None" = None
    ) -> "SamplingRecipe":
        """Make a recipe from the contents of a file: "weights", and the sections of `SECTIONS`.

        Attention is sparse if one of its sections is present, unless the mask is "dense". The fields of "sparse" may be at the top
        level, as they were in older files.

        Args:
            values: contents of the file, unchecked.
            source: name of the file for messages.
            base: recipe that gives the values that the file does not set; None takes the defaults.

        Raises:
            InputError: an unknown section or field, or a value that does not fit.
        """
        known, changes = to_mapping(cls() if base is None else base), _nested(values, source)
        recipe = from_mapping(
            cls, _merged(_without_placement(known, changes), changes), source=source
        )
        sparse, skip = recipe.sparse, recipe.skip
        return replace(
            recipe,
            sparse=None if sparse is None or sparse.sparsity.mask == "dense" else sparse,
            skip=None if skip is None or not skip.threshold else skip,
        )

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Names in configs/sampling."""
        return tuple(sorted(path.stem for path in (configs_directory() / KIND).glob("*.toml")))

    def require_weights(self, weights: str | None) -> None:
        """Check that the recipe is for a checkpoint.

        Args:
            weights: the checkpoint's own quantization recipe; None is full precision.

        Raises:
            InputError: the checkpoint has other weights.
        """
        if self.weights and self.weights != weights:
            precision = f"in {weights}" if weights else "in full precision"
            raise InputError(
                f"this recipe is for a checkpoint in {self.weights}, this one is {precision};"
                f" make one with `qsjax calibrate --weights {self.weights}`, or name another recipe"
            )


RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | SamplingRecipe
"""A preset of configs/sampling, the path or the contents of a TOML file, or a recipe."""


def _nested(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Nest a file's flat tables like the dataclasses; older files' top-level fields go into "sparse"."""
    nested: dict[str, Any] = {}
    fields = SparsePlan.__dataclass_fields__
    for key, value in values.items():
        if key in SECTIONS and not isinstance(value, Mapping):
            raise InputError(f"{source}: {key}: expected a table, found {value!r}")
        if key == "sparse":
            nested[key] = {**nested.get(key, {}), **value}
        elif key in fields:
            nested.setdefault("sparse", {})[key] = value
        elif key in ("weights", "skip"):
            nested[key] = value
        else:
            names = ("weights", *SECTIONS, *fields)
            raise InputError(f"{source}: unknown key {key!r}; {nearest(key, names)}")
    return nested


def _without_placement(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base without its own placement of refreshes, where the changes name another: an interval, a table or a drift."""
    sparse, changed = base.get("sparse"), changes.get("sparse", {})
    if not sparse or not any(name in changed for name in ("interval", "refresh_at", "drift")):
        return base
    return {**base, "sparse": {**sparse, "refresh_at": (), "drift": 0.0}}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested tables; `changes` win over `base`."""
    merged = dict(base)
    for key, value in changes.items():
        before = base.get(key)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        merged[key] = _merged(before, value) if both else value
    return merged
