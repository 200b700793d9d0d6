"""`qsjax evaluate`: compressed models against full precision, and the experiments on the tiny model."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsjax.cli.numbers import whole
from qsjax.cli.options import Options, add_config, add_no_verify, with_config
from qsjax.errors import InputError
from qsjax.settings.calibration import SAMPLES
from qsjax.untrusted import shown

if TYPE_CHECKING:
    from qsjax.pipeline import Pipeline

_SIZES = {
    "frames": "video frames, 4k+1",
    "height": "pixels",
    "width": "pixels",
    "steps": "denoising steps",
}
_DEFAULT_OUT = Path("outputs/quantization")


def add_arguments(options: Options) -> None:
    """The options of `qsjax evaluate`."""
    options.add_argument(
        "what",
        choices=("compare", "quantization", "sparse"),
        help="compare: checkpoints against a full-precision one; quantization: calibrate the bundled model in many"
        " ways and compare them; sparse: sample it with sparse attention in many ways; hours for all rows",
    )
    options.add_argument(
        "--reference", default="tiny", help="full-precision checkpoint, or 'tiny' for the bundle"
    )
    options.add_argument(
        "--model", nargs="+", default=[], help="compare: checkpoints of the same architecture"
    )
    options.add_argument(
        "--captions",
        type=str,
        help="number of held-out captions of the tiny model (default: 8 for compare, else 32); for compare also a"
        " text file, one caption per line",
    )
    options.add_argument(
        "--rows",
        default="",
        help="quantization, sparse: only rows whose name matches this regular expression, as in W4A8/",
    )
    options.add_argument(
        "--samples",
        type=whole(1, 100_000),
        default=SAMPLES,
        help="quantization, sparse: samples of the calibration",
    )
    options.add_argument(
        "--stream",
        choices=("choice", "report"),
        help="captions and noise: those that settings are chosen on, or those that have chosen nothing (quantization: default"
        " report; sparse: default the held-out captions of its older tables)",
    )
    options.add_argument(
        "--first-caption",
        type=whole(0, 1_000_000),
        help="sparse, without --stream: number of the first held-out caption, from 0",
    )
    options.add_argument("--batch", type=whole(1, 4096), default=8, help="compare: clips at once")
    for name, text in _SIZES.items():
        options.add_argument(f"--{name}", type=int, help=f"{text} (default: the checkpoint's)")
    options.add_argument(
        "--seed",
        type=whole(0),
        help="compare, sparse: clip i has the noise of seed + i (default: 0); with --stream it is the calibration's alone."
        " Rows of quantization have seeds of their own",
    )
    options.add_argument(
        "--out",
        type=Path,
        help=f"folder for tables, contact sheets and plots (default: {_DEFAULT_OUT} or its neighbour sparse, where a stopped"
        " run goes on; compare writes nothing)",
    )
    options.add_argument(
        "--plots", action="store_true", help="plots too: pip install 'qsjax[plot]'"
    )
    options.add_argument(
        "--lpips",
        action="store_true",
        help="compare, quantization: LPIPS too: pip install 'qsjax[lpips]'",
    )
    add_no_verify(options)
    options.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
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
    if args.lpips:
        from qsjax.evaluate.perceptual import require_lpips

        require_lpips()
    report, text = _compare(args) if args.what == "compare" else _grid(args)
    print(json.dumps(report, indent=1) if args.json else text)
    return 1 if any("failure" in row for row in report.get("rows", ())) else 0


def _grid(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    captions, chosen = _count(args), _chosen(args)
    from qsjax.experiments.row import select

    rows, experiment_class, report_class = _GRIDS[args.what]()
    rows, folder = select(rows, args.rows), args.out or _DEFAULT_OUT.with_name(args.what)
    experiment = experiment_class(
        _pipeline(args.reference, dtype="float32", verify=not args.no_verify),
        folder,
        captions=captions,
        samples=args.samples,
        progress=True,
        **chosen,
        **_settings(args),
    )
    report = report_class(experiment, experiment.run(rows))
    files = [str(path) for path in report.write(folder, plots=args.plots)]
    text = "\n".join([report.text(), *(f"wrote {path}" for path in files)])
    return report.plain() | {"files": files}, text


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """What one grid takes and the other does not, of what was typed."""
    given = {
        "stream": args.stream,
        "seed": args.seed,
        "first_caption": args.first_caption,
        "lpips": args.lpips or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, reason in _REFUSED[args.what].items():
        if name in given:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is not for `qsjax evaluate {args.what}`: {reason}")
    return given


_REFUSED = {
    "quantization": {
        "seed": "its rows have calibration seeds of their own, and the clips the noise of --stream",
        "first_caption": "--stream names its captions",
    },
    "sparse": {"lpips": "it has no column for it"},
}


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


_GRIDS = {"quantization": _quantization, "sparse": _sparse}
"""Functions that return the rows of a grid and the classes of its experiment and report; they import them when called."""


def _count(args: argparse.Namespace) -> int:
    if args.model:
        raise InputError("--model is for `qsjax evaluate compare`; --reference names the model")
    captions = "32" if args.captions is None else args.captions
    if not (captions.isdecimal() and len(captions) < 7):
        raise InputError(
            f"--captions {shown(captions, 40)}: {args.what} takes a number of held-out captions"
        )
    return int(captions)


def _compare(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if not args.model:
        raise InputError("--model CHECKPOINT is needed: what to compare with --reference")
    if args.plots and args.out is None:
        raise InputError("--plots needs --out FOLDER to write to")
    from qsjax.evaluate.checkpoints import compare_checkpoints, read_captions

    if args.stream or args.first_caption is not None:
        raise InputError(
            "--stream and --first-caption are not for compare; --captions takes a file"
        )
    captions = read_captions("8" if args.captions is None else args.captions)
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
