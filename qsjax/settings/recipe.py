"""Sampling recipes: sparse attention, residual reuse and step skipping as a file, and the weights that they were chosen for."""

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
"""Section of a file and prefix of an option -> whose fields it has. A section is named as the field that holds it."""


@dataclass(frozen=True, kw_only=True)
class SamplingRecipe:
    """What `--recipe` names.

    Attributes:
        weights: quantization recipe of the checkpoints that it is for; "" is any.
        sparse: sparse attention; None is dense.
        skip: steps that are left out; None leaves out none.
    """

    weights: str = ""
    sparse: SparsePlan | None = None
    skip: Skip | None = None

    @classmethod
    def load(cls, name: str) -> "SamplingRecipe":
        """A preset of configs/sampling, or a TOML file.

        Args:
            name: of the preset, or a path that ends in .toml.

        Raises:
            InputError: no such recipe, an unknown field, or a value that does not fit.
        """
        values = load_toml(Path(name)) if name.endswith(".toml") else preset(KIND, name)
        return cls.of_sections(values, source=f"recipe {name}")

    @classmethod
    def of(cls, recipe: "RecipeLike") -> "SamplingRecipe":
        """A recipe of whatever names or holds it: a preset, a TOML file, its contents, itself.

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
        """What a plan has of a recipe."""
        return cls(sparse=plan.sparse, skip=plan.skip)

    @classmethod
    def of_sections(
        cls, values: Mapping[str, Any], *, source: str, base: "SamplingRecipe | None" = None
    ) -> "SamplingRecipe":
        """A recipe of the tables of a file: "weights", and the sections of `SECTIONS`.

        Attention is sparse where one of its sections is there, unless the mask is "dense". The fields of "sparse" may stand at the
        top, as they did in older files.

        Args:
            values: untrusted.
            source: for messages.
            base: what is not said; None is the defaults.

        Raises:
            InputError: an unknown section or field, or a value that does not fit.
        """
        known = to_mapping(cls() if base is None else base)
        recipe = from_mapping(cls, _merged(known, _nested(values, source)), source=source)
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
        """Refuse a checkpoint that the recipe is not for.

        Args:
            weights: the checkpoint's own quantization recipe; None is full precision.

        Raises:
            InputError: it has others.
        """
        if self.weights and self.weights != weights:
            found = f"in {weights}" if weights else "in full precision"
            raise InputError(
                f"this recipe is for a checkpoint in {self.weights}, this one is {found};"
                f" make one with qsjax calibrate --weights {self.weights}, or name another recipe"
            )


RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | SamplingRecipe
"""What names or holds a recipe: a preset of configs/sampling, a TOML file, its contents, or itself."""


def _nested(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Tables side by side as the dataclasses hold each other; what older files have at the top goes into "sparse"."""
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


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes win, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        before = base.get(key)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        merged[key] = _merged(before, value) if both else value
    return merged
