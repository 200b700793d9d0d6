"""`qsjax calibrate`: a quantized checkpoint from a float one, block by block."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from qsjax.cli.options import add_config, with_config
from qsjax.errors import InputError

_SIZES = {
    "frames": ("video frames, 4k+1", 61),
    "height": ("pixels", 544),
    "width": ("pixels", 960),
    "steps": ("of denoising", 50),
}
"""What a size means, and the most that is taken without being asked for: larger videos teach little more and take hours."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qsjax calibrate`."""
    parser.add_argument(
        "--model", default="tiny", help="float checkpoint, or 'tiny' for the bundled model"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument(
        "--recipe",
        default="w4a8",
        help="w4a8, w6a6, w8a8, w4a16, or a TOML file: bits of all layers",
    )
    parser.add_argument(
        "--method", default="msad", help="msad, or another of qsjax.calibration.METHODS"
    )
    parser.add_argument(
        "--captions",
        type=Path,
        help="text file, one caption a line (default: those of configs/captions)",
    )
    parser.add_argument("--samples", type=int, default=20, help="moments of sampling to train on")
    parser.add_argument("--epochs", type=int, help="passes over them (default: the method's)")
    for name, (text, most) in _SIZES.items():
        parser.add_argument(
            f"--{name}", type=int, help=f"{text} (default: the checkpoint's, at most {most})"
        )
    parser.add_argument("--seed", type=int, default=0, help="of noise and the order of samples")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of activations (default: bfloat16 on TPU and GPU, float32 on CPU)",
    )
    parser.add_argument("--plot", type=Path, help="PNG of curves and errors to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate.

    Raises:
        QsjaxError: something the caller can mend.
    """
    options = argparse.ArgumentParser(add_help=False)
    add_arguments(options)
    args = with_config(options, args)
    from qsjax.calibration import method
    from qsjax.calibration.checkpoint import calibrate_checkpoint
    from qsjax.calibration.report import as_text, plot, summary
    from qsjax.calibration.samples import collect
    from qsjax.pipeline import Pipeline
    from qsjax.quant import Recipe

    if args.samples < 1:
        raise InputError(f"--samples {args.samples}: at least 1 is needed")
    chosen = method(args.method)
    if args.epochs is not None:
        chosen = replace(chosen, epochs=args.epochs)
    recipe = Recipe.load(args.recipe)
    captions = _captions(args)
    open_pipeline: Any = Pipeline.tiny if args.model == "tiny" else Pipeline.from_checkpoint
    given = () if args.model == "tiny" else (args.model,)
    pipeline = open_pipeline(*given, dtype=args.dtype)
    sizes = {
        name: min(getattr(pipeline.settings, name), most)
        if getattr(args, name) is None
        else getattr(args, name)
        for name, (_, most) in _SIZES.items()
    }
    settings = pipeline.resolve(**sizes)
    manifest, reports = calibrate_checkpoint(
        pipeline.directory,
        args.out,
        lambda: collect(pipeline, captions, samples=args.samples, seed=args.seed, **sizes),
        recipe,
        chosen,
        described={
            "captions": captions[: args.samples],
            "samples": args.samples,
            "frames": settings.frames,
            "height": settings.height,
            "width": settings.width,
            "steps": settings.steps,
        },
        seed=args.seed,
        dtype=pipeline.dtype,
        overwrite=args.overwrite,
    )
    files = [] if args.plot is None else [str(plot(reports, args.plot))]
    whole = summary(reports)
    if args.json:
        report = {"checkpoint": str(manifest.directory), **whole, "blocks": reports, "files": files}
        print(json.dumps(report, indent=1))
        return 0
    print(as_text(reports))
    for file in (str(manifest.directory), *files):
        print(f"wrote {file}")
    return 0


def _captions(args: argparse.Namespace) -> list[str]:
    if args.captions is None:
        if args.model == "tiny":
            from qsjax.tiny.streams import CALIBRATION, held_out

            return [scene.caption for scene in held_out(CALIBRATION, args.samples)]
        from qsjax.config import preset

        return list(preset("captions", "general")["captions"])
    try:
        lines = args.captions.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--captions {args.captions}: cannot be read ({error}); give a text file, one caption a line"
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"--captions {args.captions}: holds no caption; write one a line")
    return found
