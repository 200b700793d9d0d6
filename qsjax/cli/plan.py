"""`qsjax plan`: what fits where, before anything is loaded."""

import argparse
import json
import re

from qsjax.cli.options import add_config, with_config
from qsjax.cli.sparse import add_sparse_options, sampling_changes
from qsjax.errors import InputError

_VIDEO = {
    "frames": "video frames, 4k+1",
    "height": "pixels",
    "width": "pixels",
    "steps": "denoising steps",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qsjax plan`."""
    parser.add_argument(
        "--model",
        default="hunyuan-13b",
        help="preset of configs/models, 'tiny' for the bundled model, or a checkpoint folder",
    )
    parser.add_argument(
        "--recipe",
        help="preset of configs/recipes or TOML file, or a sampling recipe, as quantsparse-w4a8-d15, which says which weights it"
        " is for (default: the checkpoint's own, else w4a8)",
    )
    for name, meaning in _VIDEO.items():
        parser.add_argument(f"--{name}", type=int, help=f"{meaning} (default: the model's)")
    parser.add_argument(
        "--text-tokens", type=int, default=256, help="tokens of the prompt, padding included"
    )
    parser.add_argument(
        "--text-storage", choices=("int8",), help="of the text encoders (default: bfloat16)"
    )
    parser.add_argument(
        "--modulation",
        choices=("resident", "released"),
        default="released",
        help="whether modulation weights leave the device before the first step",
    )
    parser.add_argument(
        "--shard-weights",
        action="store_true",
        help="devices of several chips share the transformer's weights; without it each chip has all of them",
    )
    parser.add_argument(
        "--density",
        type=float,
        default=0.15,
        help="share of attention that is computed; a sampling recipe has its own",
    )
    parser.add_argument(
        "--calibration-size",
        metavar="FxHxW",
        help="frames x height x width of calibration samples (default: the model's, at most 61x544x960)",
    )
    parser.add_argument("--samples", type=int, default=20, help="calibration samples")
    parser.add_argument("--epochs", type=int, default=15, help="passes over them, for every block")
    parser.add_argument("--device", help="preset of configs/devices (default: all of them)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile a step of each kind for --device, which need not be here, and print the compiler's count of bytes; minutes",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON on stdout")
    add_sparse_options(parser, recipe=False)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Plan and print.

    Raises:
        QsjaxError: no such model or recipe, or a value that the model cannot have.
    """
    options = argparse.ArgumentParser(add_help=False)
    add_arguments(options)
    args = with_config(options, args)
    from qsjax.budget import PlannedModel, make_report, text
    from qsjax.sample.recipe import SamplingRecipe

    named = args.recipe if args.recipe in SamplingRecipe.presets() else ""
    chosen_for = SamplingRecipe.load(named).weights
    weights = (chosen_for or "bf16") if named else args.recipe
    report = make_report(
        PlannedModel.find(args.model, weights),
        **{name: getattr(args, name) for name in _VIDEO},
        text_tokens=args.text_tokens,
        density=args.density,
        calibration_size=_size(args.calibration_size),
        samples=args.samples,
        epochs=args.epochs,
        **sampling_changes(args, named, chosen_for or None),
        text_storage=args.text_storage,
        released=args.modulation == "released",
        cut=args.shard_weights,
        only=args.device,
        compiled=args.compile,
    )
    print(json.dumps(report, indent=1) if args.json else text(report))
    return 0


def _size(given: str | None) -> tuple[int, int, int] | None:
    if given is None:
        return None
    if not (found := re.fullmatch(r"(\d+)x(\d+)x(\d+)", given)):
        raise InputError(
            f"--calibration-size {given!r}: give frames x height x width, as in 61x544x960"
        )
    frames, height, width = map(int, found.groups())
    return frames, height, width
