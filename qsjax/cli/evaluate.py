"""`qsjax evaluate`: compressed models against full precision, and the experiments on the tiny model."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsjax.address import install
from qsjax.cli.numbers import whole
from qsjax.cli.options import Options, add_config, add_no_verify, with_config
from qsjax.errors import InputError
from qsjax.settings.calibration import SAMPLES

if TYPE_CHECKING:
    from qsjax.pipeline import Pipeline

_SIZES = {
    "frames": "video frames, 4k+1",
    "height": "pixels",
    "width": "pixels",
    "steps": "denoising steps",
}


def add_arguments(options: Options) -> None:
    """The commands of `qsjax evaluate`, each with its options."""
    command = options.command(
        "compare",
        "checkpoints against a full-precision one, as `--model checkpoints/w4a8 --reference checkpoints/hunyuan`",
        "The same captions and noise for both; without --out tables are printed and nothing is written.",
    )
    command.add_argument(
        "--model", nargs="+", default=[], help="checkpoints of the reference's architecture"
    )
    _add_reference(command)
    command.add_argument(
        "--captions",
        default="8",
        help="text file, one caption a line, or a number of held-out captions of the tiny model",
    )
    _add_seed(command, "clip i has the noise of seed + i")
    command.add_argument("--batch", type=whole(1, 4096), default=8, help="clips at once")
    _add_size(command)
    _add_output(command, "folder for tables, contact sheets and plots", lpips=True)
    for name, (summary, _) in _GRIDS.items():
        command = options.command(
            name,
            summary,
            "Finished rows are kept, and the same command goes on with the others.",
        )
        _add_grid(command, name)


def _add_reference(options: Options) -> None:
    options.add_argument(
        "--reference",
        default="tiny",
        help="full-precision checkpoint, or 'tiny' for the bundled model",
    )


def _add_grid(options: Options, name: str) -> None:
    _add_reference(options)
    options.add_argument(
        "--rows", default="", help="only rows whose name matches this regular expression, as W4A8/"
    )
    options.add_argument(
        "--captions",
        type=whole(1, 999_999),
        default=32,
        help="number of held-out captions of the tiny model",
    )
    options.add_argument(
        "--samples", type=whole(1, 100_000), default=SAMPLES, help="samples of a calibration"
    )
    streams = (
        "captions and noise: those that settings are chosen on, or those that have chosen nothing"
    )
    default = (
        "report" if name == "quantization" else "neither: the held-out captions of older tables"
    )
    options.add_argument(
        "--stream", choices=("choice", "report"), help=f"{streams} (default: {default})"
    )
    if name == "sparse":
        options.add_argument(
            "--first-caption",
            type=whole(0, 1_000_000),
            help="without --stream: number of the first held-out caption, from 0 (default: 0)",
        )
        _add_seed(options, "clip i has the noise of seed + i; with --stream, of the calibration")
    _add_size(options)
    folder = f"folder for tables and plots, where a stopped run goes on (default: {_folder(name)})"
    _add_output(options, folder, lpips=name == "quantization")


def _add_seed(options: Options, text: str) -> None:
    options.add_argument("--seed", type=whole(0), help=f"{text} (default: 0)")


def _add_size(options: Options) -> None:
    group = options.group("size of the videos")
    for name, text in _SIZES.items():
        group.add_argument(f"--{name}", type=int, help=f"{text} (default: the checkpoint's)")


def _add_output(options: Options, folder: str, *, lpips: bool) -> None:
    group = options.group("output")
    group.add_argument("--out", type=Path, help=folder)
    group.add_argument("--plots", action="store_true", help=f"plots too: {install('plot')}")
    if lpips:
        group.add_argument("--lpips", action="store_true", help=f"LPIPS too: {install('lpips')}")
    group.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    add_no_verify(options)
    add_config(options)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print tables. The exit status is 1 if a row of a grid failed; the table says which.

    Raises:
        QsjaxError: an error that the user can fix.
    """
    args = with_config(args.options, args)
    if args.plots:
        from qsjax.evaluate.plots import require_matplotlib

        require_matplotlib()
    if getattr(args, "lpips", False):
        from qsjax.evaluate.perceptual import require_lpips

        require_lpips()
    report, text = _compare(args) if args.what == "compare" else _grid(args)
    print(json.dumps(report, indent=1) if args.json else text)
    return 1 if any("failure" in row for row in report.get("rows", ())) else 0


def _grid(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from qsjax.experiments.row import select

    rows, experiment_class, report_class = _GRIDS[args.what][1]()
    rows, folder = select(rows, args.rows), args.out or _folder(args.what)
    experiment = experiment_class(
        _pipeline(args.reference, dtype="float32", verify=not args.no_verify),
        folder,
        captions=args.captions,
        samples=args.samples,
        progress=True,
        **_chosen(args),
        **_settings(args),
    )
    report = report_class(experiment, experiment.run(rows))
    files = [str(path) for path in report.write(folder, plots=args.plots)]
    text = "\n".join([report.text(), *(f"wrote {path}" for path in files)])
    return report.plain() | {"files": files}, text


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """What was typed of the arguments that one experiment has and the other has not, or that have no default here."""
    names = ("stream", "seed", "first_caption", "lpips")
    given = {name: getattr(args, name, None) for name in names}
    return {
        name: value for name, value in given.items() if value is not None and value is not False
    }


def _folder(experiment: str) -> Path:
    return Path("outputs", experiment)


def _quantization() -> tuple[Any, Any, Any]:
    from qsjax.experiments import quantization

    return (
        quantization.quantization_grid(),
        quantization.QuantizationExperiment,
        quantization.QuantizationReport,
    )


def _sparse() -> tuple[Any, Any, Any]:
    from qsjax.experiments import sparse

    return sparse.sparse_grid(), sparse.SparseExperiment, sparse.SparseReport


_GRIDS = {
    "quantization": (
        "calibrate the bundled model in many ways and compare them; hours for all rows",
        _quantization,
    ),
    "sparse": (
        "sample the bundled model with sparse attention in many ways; hours for all rows",
        _sparse,
    ),
}
"""Experiment -> its line in the help, and a function that returns the rows of its grid and the classes of its experiment and report;
that imports them when it is called."""


def _compare(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if not args.model:
        raise InputError("--model CHECKPOINT is needed: what to compare with --reference")
    if args.plots and args.out is None:
        raise InputError("--plots needs --out FOLDER to write to")
    from qsjax.evaluate.checkpoints import compare_checkpoints, read_captions

    captions = read_captions(args.captions)
    verify = not args.no_verify
    comparison = compare_checkpoints(
        _pipeline(args.reference, verify=verify),
        {str(name): _pipeline(str(name), verify=verify) for name in args.model},
        captions,
        seed=args.seed or 0,
        batch=args.batch,
        lpips=args.lpips,
        show=2 if args.out else 0,
        progress=True,
        **_settings(args),
    )
    files = [] if args.out is None else comparison.write(args.out, plots=args.plots)
    report = {"reference": args.reference, **comparison.plain(), "files": list(map(str, files))}
    return report, "\n".join([comparison.text(), *(f"wrote {path}" for path in files)])


def _pipeline(name: str, **options: Any) -> "Pipeline":
    from qsjax.pipeline import Pipeline

    options |= {"progress": False, "staged": False}  # every batch needs all three models
    if name == "tiny":
        return Pipeline.tiny(**options)
    return Pipeline.from_checkpoint(name, **options)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in _SIZES}
