"""Which setting wins: single arguments over `sparse=` and `skip=`, those over the recipe, and the recipe over the checkpoint."""

from dataclasses import replace
from typing import Any, Literal

from qsjax.settings.recipe import RecipeLike, SamplingRecipe
from qsjax.settings.skip import Skip
from qsjax.settings.sparse import SparsePlan
from qsjax.settings.video import Settings


def choose_settings(
    stored: Settings,
    weights: str | None,
    *,
    recipe: RecipeLike | None = None,
    sparse: SparsePlan | Literal[False] | None = None,
    skip: Skip | Literal[False] | None = None,
    **arguments: int | float | None,
) -> Settings:
    """The settings of a call.

    Args:
        stored: the checkpoint's settings.
        weights: the checkpoint's quantization recipe; None in full precision.
        recipe: recipe of sparse attention and step skipping.
        sparse, skip: replace the recipe's; False switches them off.
        **arguments: other fields of `Settings`; None keeps the stored value.

    Raises:
        InputError: no such recipe, or one for other weights; a value out of range.
    """
    chosen = stored
    if recipe is not None:
        loaded = SamplingRecipe.of(recipe)
        loaded.require_weights(weights)
        chosen = replace(chosen, sparse=loaded.sparse, skip=loaded.skip)
    if sparse is not None:
        chosen = replace(chosen, sparse=sparse or None)
    if skip is not None:
        chosen = replace(chosen, skip=skip or None)
    changes: dict[str, Any] = {k: v for k, v in arguments.items() if v is not None}
    return replace(chosen, **changes)
