"""`qsjax bench`: the transformer against PyTorch, sparse sampling against dense, kernels, conversion and a whole run against the hardware."""

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
    """The options of `qsjax bench`."""
    options.add_argument(
        "what",
        choices=("dit", "kernels", "sample", "conversion", "step"),
        help="dit: one forward of a mid-size transformer; kernels: every operation of pallas_kernels; sample: a run with sparse"
        " attention and one with dense; conversion: a transformer of 13B parameters made here, in minutes and 33 GB of disk;"
        " step: a whole run of HunyuanVideo-13B on a TPU that is not here, estimated block by block by its compiler, in minutes",
    )
    options.add_argument(
        "--against", choices=("torch",), default="torch", help="dit: what to compare with"
    )
    options.add_argument(
        "--target",
        default=argparse.SUPPRESS,
        help="kernels: cpu, v5e, v5p, v6e, h100 or h200; measured on the default device (which is the default),"
        " estimated by the compiler for a TPU that is not here; step: v5e, v5p or v6e",
    )
    options.add_argument(
        "--weights",
        help="step: quantization recipe (default: what the sampling recipe is for, else w4a8)",
    )
    add_fields(options, Settings, only=_VIDEO, default="step: the model's")
    options.add_argument(
        "--pairs", type=whole(1, 1000), default=7, help="measurements of each, in alternating order"
    )
    options.add_argument(
        "--steps", type=whole(1, 10_000), default=50, help="sample: of both runs; step: of the run"
    )
    options.add_argument(
        "--folder", type=Path, default=Path(), help="conversion: where source and result may lie"
    )
    options.add_argument(
        "--quantize",
        metavar="METHOD-RECIPE",
        default="rtn-w4a8",
        help="conversion: as in qsjax convert",
    )
    options.add_argument(
        "--vae",
        action="store_true",
        help="step: also compile a tile of the autoencoder, minutes; else a stored estimate counts",
    )
    add_sparse_options(options)
    options.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        InputError: torch is not installed; a target that is not here and cannot be estimated.
    """
    target = getattr(args, "target", None)
    if args.what not in ("kernels", "step") and target is not None:
        raise InputError(
            f"--target {target} is for `qsjax bench kernels` and `qsjax bench step`, not for {args.what}"
        )
    if args.what == "sample":
        report, text = _sample(args)
    elif args.what == "step":
        report, text = _step(args, target)
    elif args.what == "conversion":
        report, text = _conversion(args.folder, args.quantize)
    else:
        report, text = _kernels(target, args.pairs) if args.what == "kernels" else _dit(args.pairs)
    print(json.dumps(report, indent=1) if args.json else text)
    return 0


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


def _conversion(folder: Path, quantize: str) -> tuple[dict, str]:
    from qsjax.bench.conversion import bench, text
    from qsjax.budget.models import PlannedModel

    report = bench(PlannedModel.find("hunyuan-13b").dit, folder, quantize=quantize)
    return report, text(report)


def _step(args: argparse.Namespace, target: str | None) -> tuple[dict, str]:
    from qsjax.bench.step_run import bench
    from qsjax.bench.step_tables import text

    if target is None:
        raise InputError("qsjax bench step needs a --target: v5e, v5p or v6e")
    sizes = {name: getattr(args, name) for name in _VIDEO}
    recipe = chosen_recipe(args)
    report = bench(
        target, recipe=recipe, weights=args.weights, steps=args.steps, vae=args.vae, **sizes
    )
    return report, text(report)


def _kernels(target: str | None, pairs: int) -> tuple[dict, str]:
    from qsjax.bench.kernel_tables import text
    from qsjax.bench.kernels import bench

    report = bench(target, pairs=pairs)
    return report, text(report)


def _dit(pairs: int) -> tuple[dict, str]:
    from qsjax.bench.dit import against_torch

    report = against_torch(pairs)
    return report, (
        f"{report['tokens']} tokens, float32, {report['threads']} threads, {report['gflop']:.0f} GFLOP in the blocks,"
        f" median of {report['pairs']} alternating pairs\n"
        f"qsjax    {report['qsjax_seconds']:.3f} s  {report['qsjax_gflops']:.0f} GFLOP/s\n"
        f"diffusers {report['torch_seconds']:.3f} s  {report['torch_gflops']:.0f} GFLOP/s\n"
        f"ratio    {report['median_ratio']:.3f}  (largest difference of the outputs {report['max_difference']:.1e})"
    )
