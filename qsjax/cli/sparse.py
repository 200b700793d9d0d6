"""Options of sparse attention and step skipping: a recipe, and dotted names for every field of it."""

import argparse
from typing import Any

FIELDS: dict[str, tuple[str, Any, str]] = {
    "sparse.mask": ("sparsity.mask", str, "which family: svg, topk, sta, ...; a wrong one lists all"),
    "sparse.density": ("sparsity.density", float, "share of the pairs of video blocks"),
    "sparse.block": ("sparsity.block", int, "tokens of a block; 0 follows the video's size"),
    "sparse.tile": ("sparsity.tile", "TxHxW", "tokens of a tile, for sta, topk, topp, band, window"),
    "sparse.mass": ("sparsity.mass", float, "of topp: share of the softmax that a list reaches"),
    "sparse.sink-frames": ("sparsity.sink_frames", int, "first frames that every query sees"),
    "sparse.profiled-rows": ("sparsity.profiled_rows", int, "of svg: rows that decide a head's order"),
    "sparse.every-step": ("sparsity.every_step", "BOOL", "true: topk and topp choose their lists in every step"),
    "sparse.interval": ("interval", int, "steps from refresh to refresh; 0 refreshes once"),
    "sparse.dense-steps": ("dense_steps", int, "steps at the beginning that are dense"),
    "sparse.scores": ("scores", str, "float, or int8 for queries and keys in 8 bits"),
    "residual.policy": ("residual.policy", str, "how the cache corrects a sparse step; a wrong one lists all"),
    "residual.store": ("residual.store", str, "of the cache: float32, bfloat16, int8, int4"),
    "residual.rank": ("residual.rank", int, "of what changed since the last refresh; 0 keeps all"),
    "residual.budget": ("residual.budget", int, "bytes for the cache of all layers: picks the store; 0 sets none"),
    "residual.place": ("residual.place", str, "of the cache: device, or host, from where layers are fetched ahead (not on GPUs)"),
    "residual.clock": ("residual.clock", str, "steps or sigma: what extrapolation counts in"),
    "skip.threshold": ("skip.threshold", float, "leave out steps while the change of the tokens adds up to less; 0 computes all"),
    "skip.coefficients": ("skip.coefficients", "A,B,...", "of the polynomial that rescales that change, highest power first"),
}  # fmt: skip
"""Option -> (field of `qsjax.sample.recipe.SamplingRecipe`, type, help)."""


def add_sparse_options(parser: argparse.ArgumentParser, *, recipe: bool = True) -> None:
    """Add the options of `FIELDS`, and `--recipe`."""
    group = parser.add_argument_group(
        "sparse attention, residual reuse and step skipping",
        "any of these switches them on; what is not said is the recipe's, or qsjax.sample.SparsePlan's",
    )
    if recipe:
        group.add_argument(
            "--recipe", help="preset of configs/sampling or TOML file, as in quantsparse-w4a8-d15"
        )
    for option, (field, kind, text) in FIELDS.items():
        named = isinstance(kind, str)
        group.add_argument(
            f"--{option}",
            dest=field,
            type=_READ[kind] if named else kind,
            metavar=kind if named else kind.__name__.upper(),
            help=text,
        )


def sampling_changes(
    args: argparse.Namespace, recipe: str | None, weights: str | None
) -> dict[str, Any]:
    """The fields `sparse` and `skip` of `qsjax.sample.SamplingPlan` that the options describe for a checkpoint; None where there are none.

    Args:
        args: parsed.
        recipe: of sampling; None or "" is none.
        weights: the checkpoint's quantization recipe, None in full precision.

    Raises:
        InputError: no such recipe, values that do not fit, or a recipe for other weights.
    """
    from qsjax.sample.recipe import SamplingRecipe

    given, name = vars(args), recipe or ""
    changes = {
        field: given[field] for field, _, _ in FIELDS.values() if given.get(field) is not None
    }
    if not name and not changes:
        return {"sparse": None, "skip": None}
    loaded = SamplingRecipe.load(name, changes)
    only_skips = not name and all(field.startswith("skip.") for field in changes)
    return {"sparse": None if only_skips else loaded.plan(weights), "skip": loaded.skipping}


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give numbers with commas between them"
        ) from error


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split("x")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give tokens along time, height and width, as in 1x8x8"
        ) from error


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: give true or false")
    return text == "true"


_READ = {"TxHxW": _sizes, "BOOL": _truth, "A,B,...": _numbers}
