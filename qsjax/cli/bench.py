"""`qsjax bench`: kernels, the transformer, sampling, a whole run and a conversion, each against what it competes with."""

import argparse
import json
from pathlib import Path

from qsjax.cli.fields import add_fields
from qsjax.cli.numbers import whole
from qsjax.cli.options import Options
from qsjax.cli.sparse import add_sparse_options, chosen_recipe
from qsjax.errors import InputError
from qsjax.settings import SamplingRecipe, Settings

_VIDEO = ("frames", "height", "width")


def add_arguments(options: Options) -> None:
    """The commands of `qsjax bench`, each with its options."""
    for name, (summary, add, _) in _COMMANDS.items():
        command = options.command(name, summary)
        add(command)
        command.add_argument(
            "--json", action="store_true", help="print the report as JSON on stdout"
        )


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        InputError: torch is not installed; a target that is not here and cannot be estimated.
    """
    report, text = _COMMANDS[args.what][2](args)
    print(json.dumps(report, indent=1) if args.json else text)
    return 0


def _add_dit(options: Options) -> None:
    options.add_argument(
        "--against", choices=("torch",), default="torch", help="what to compare with"
    )
    _add_pairs(options)


def _add_kernels(options: Options) -> None:
    options.add_argument(
        "--target",
        help="cpu, v5e, v5p, v6e, h100 or h200: measured where it is the default device, else estimated by the"
        " compiler, for TPUs only (default: the default device)",
    )
    _add_pairs(options)


def _add_pairs(options: Options) -> None:
    options.add_argument(
        "--pairs", type=whole(1, 1000), default=7, help="measurements of each, in alternating order"
    )


def _add_sample(options: Options) -> None:
    _add_steps(options, "of both runs")
    add_sparse_options(options)


def _add_steps(options: Options, text: str) -> None:
    options.add_argument("--steps", type=whole(1, 10_000), default=50, help=f"steps {text}")


def _add_conversion(options: Options) -> None:
    options.add_argument(
        "--folder", type=Path, default=Path(), help="where source and result may lie"
    )
    options.add_argument(
        "--quantize", metavar="METHOD-RECIPE", default="rtn-w4a8", help="as in qsjax convert"
    )


def _add_step(options: Options) -> None:
    options.add_argument("--target", help="the TPU, which need not be here: v5e, v5p or v6e")
    options.add_argument(
        "--weights",
        help="quantization recipe (default: what the sampling recipe is for, else w4a8)",
    )
    add_fields(options, Settings, only=_VIDEO, default="the model's")
    _add_steps(options, "of the run")
    options.add_argument(
        "--vae",
        action="store_true",
        help="also compile a tile of the autoencoder, minutes; else a stored estimate counts",
    )
    add_sparse_options(options)


def _sample(args: argparse.Namespace) -> tuple[dict, str]:
    from qsjax.bench.sample import PLAN, bench, text

    recipe = chosen_recipe(args) or SamplingRecipe()
    recipe.require_weights(None)
    if recipe.skip is not None:
        raise InputError(
            "qsjax bench sample compares steps that are all computed; leave --skip.threshold out"
        )
    report = bench(recipe.sparse or PLAN, steps=args.steps)
    return report, text(report)


def _conversion(args: argparse.Namespace) -> tuple[dict, str]:
    from qsjax.bench.conversion import bench, text
    from qsjax.budget.models import PlannedModel

    model = PlannedModel.find("hunyuan-13b").dit
    report = bench(model, args.folder, quantize=args.quantize)
    return report, text(report)


def _step(args: argparse.Namespace) -> tuple[dict, str]:
    from qsjax.bench.step_run import bench
    from qsjax.bench.step_tables import text

    if args.target is None:
        raise InputError("qsjax bench step needs a --target: v5e, v5p or v6e")
    sizes = {name: getattr(args, name) for name in _VIDEO}
    recipe = chosen_recipe(args)
    report = bench(
        args.target, recipe=recipe, weights=args.weights, steps=args.steps, vae=args.vae, **sizes
    )
    return report, text(report)


def _kernels(args: argparse.Namespace) -> tuple[dict, str]:
    from qsjax.bench.kernel_tables import text
    from qsjax.bench.kernels import bench

    report = bench(args.target, pairs=args.pairs)
    return report, text(report)


def _dit(args: argparse.Namespace) -> tuple[dict, str]:
    from qsjax.bench.dit import against_torch

    report = against_torch(args.pairs)
    return report, (
        f"{report['tokens']} tokens, float32, {report['threads']} threads, {report['gflop']:.0f} GFLOP in the blocks,"
        f" median of {report['pairs']} alternating pairs\n"
        f"qsjax    {report['qsjax_seconds']:.3f} s  {report['qsjax_gflops']:.0f} GFLOP/s\n"
        f"diffusers {report['torch_seconds']:.3f} s  {report['torch_gflops']:.0f} GFLOP/s\n"
        f"ratio    {report['median_ratio']:.3f}  (largest difference of the outputs {report['max_difference']:.1e})"
    )


_COMMANDS = {
    "kernels": ("every operation of pallas_kernels against its floor", _add_kernels, _kernels),
    "dit": ("one forward of a mid-size transformer against diffusers'", _add_dit, _dit),
    "sample": (
        "a whole run with sparse attention against one with dense attention, on random weights",
        _add_sample,
        _sample,
    ),
    "step": (
        "a whole run of HunyuanVideo-13B on a TPU that is not here, estimated by its compiler; minutes",
        _add_step,
        _step,
    ),
    "conversion": (
        "a transformer of 13B parameters made and converted here; minutes, and 33 GB of disk",
        _add_conversion,
        _conversion,
    ),
}
"""Name -> its line in the help, a function that adds its options, and one that returns its report as data and as text."""
