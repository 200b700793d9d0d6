"""Options of sparse attention and step skipping: `--recipe`, and an option for every field of a recipe."""

import argparse
from typing import TYPE_CHECKING

from qsjax.cli.fields import add_sections, given_sections
from qsjax.cli.options import Options

if TYPE_CHECKING:
    from qsjax.sample import SamplingPlan
    from qsjax.settings import SamplingRecipe


def add_sparse_options(options: Options) -> None:
    """Add `--recipe`, and `--section.field` for every field of a sampling recipe."""
    group = options.group(
        "sparse attention, residual reuse and step skipping",
        "any of these switches them on; fields that are not given come from the recipe, else from the checkpoint, else from the"
        " defaults of qsjax.settings.SparsePlan",
    )
    group.add_argument(
        "--recipe", help="preset of configs/sampling, as quantsparse-w4a8-d15, or TOML file"
    )
    add_sections(group)


def chosen_recipe(
    args: argparse.Namespace, stored: "SamplingPlan | None" = None
) -> "SamplingRecipe | None":
    """The recipe that the options describe; None if none of them is given.

    Args:
        args: the parsed arguments.
        stored: the checkpoint's plan, which the options modify if no recipe is named.

    Raises:
        InputError: no such recipe, or values that do not fit.
    """
    from qsjax.settings import SamplingRecipe

    sections = given_sections(args)
    if args.recipe is not None:
        named = SamplingRecipe.load(args.recipe)
        return SamplingRecipe.of_sections(sections, source="options", base=named)
    if not sections:
        return None
    base = None if stored is None else SamplingRecipe.of_plan(stored)
    return SamplingRecipe.of_sections(sections, source="options", base=base)
