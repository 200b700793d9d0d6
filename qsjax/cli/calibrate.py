"""`qsjax calibrate`: a quantized checkpoint from a float one, block by block."""

import argparse
import json
from pathlib import Path

from qsjax.cli.fields import add_fields
from qsjax.cli.numbers import whole
from qsjax.cli.options import Options, add_config, add_no_verify, with_config
from qsjax.settings import Settings
from qsjax.settings.calibration import SAMPLES

_SIZES = ("frames", "height", "width", "steps")


def add_arguments(options: Options) -> None:
    """The options of `qsjax calibrate`."""
    options.add_argument(
        "--model", default="tiny", help="float checkpoint, or 'tiny' for the bundled model"
    )
    options.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    options.add_argument(
        "--weights",
        default="w4a8",
        help="quantization recipe: w4a8, w6a6, w8a8, w4a16, or a TOML file with the bits of all layers",
    )
    # The option's name until 0.1; now --recipe names sampling recipes.
    options.add_argument("--recipe", dest="weights", default="w4a8", help=argparse.SUPPRESS)
    options.add_argument(
        "--method",
        default="tuned",
        help="tuned (the best), gptq (minutes, without training), msad, or another of qsjax.calibration.METHODS",
    )
    options.add_argument(
        "--rounding",
        choices=("nearest", "gptq"),
        help="of weights: each to its nearest value, or with error feedback (GPTQ) (default: the method's)",
    )
    options.add_argument(
        "--tune-steps",
        type=whole(0, 1_000_000),
        help="steps of tuning end to end, after all blocks; 0 for none (default: the method's)",
    )
    options.add_argument(
        "--captions",
        type=Path,
        help="text file, one caption per line (default: those of configs/captions)",
    )
    options.add_argument(
        "--samples",
        type=whole(1, 100_000),
        default=SAMPLES,
        help="sampling steps whose inputs are trained on",
    )
    options.add_argument(
        "--epochs", type=whole(1, 10_000), help="passes over them (default: the method's)"
    )
    add_fields(
        options, Settings, only=_SIZES, default="the checkpoint's, at most 61x320x512 and 50"
    )
    options.add_argument(
        "--seed", type=whole(0), default=0, help="seed of the noise and of the order of samples"
    )
    options.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="dtype of activations (default: bfloat16 on TPU and GPU, float32 on CPU)",
    )
    options.add_argument(
        "--devices", type=whole(1, 65_536), default=1, help="number of devices that sample and tune"
    )
    add_no_verify(options)
    options.add_argument("--plot", type=Path, help="PNG of curves and errors to write")
    options.add_argument(
        "--report", type=Path, metavar="FILE", help="HTML page with table and charts to write"
    )
    options.add_argument("--overwrite", action="store_true", help="replace the checkpoint")
    options.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    add_config(options)


def run(args: argparse.Namespace) -> int:
    """Calibrate.

    Raises:
        QsjaxError: an error that the user can fix.
    """
    args = with_config(args.options, args)
    from qsjax.calibrating import calibrate

    calibrated = calibrate(
        args.model,
        args.out,
        weights=args.weights,
        method=args.method,
        rounding=args.rounding,
        tune_steps=args.tune_steps,
        captions=args.captions,
        samples=args.samples,
        epochs=args.epochs,
        **{name: getattr(args, name) for name in _SIZES},
        seed=args.seed,
        dtype=args.dtype,
        devices=args.devices,
        plot_to=args.plot,
        report_to=args.report,
        overwrite=args.overwrite,
        verify=not args.no_verify,
    )
    files = [str(path) for path in calibrated.files]
    if args.json:
        report = {
            "checkpoint": str(calibrated.checkpoint),
            **calibrated.summary,
            "blocks": list(calibrated.blocks),
            "tuning": list(calibrated.losses),
            "files": files,
        }
        print(json.dumps(report, indent=1))
        return 0
    print(calibrated)
    for file in (str(calibrated.checkpoint), *files):
        print(f"wrote {file}")
    return 0
