"""`qsjax plan`: what fits where, before anything is loaded."""

import argparse
import json
import re

from qsjax.cli.fields import add_fields
from qsjax.cli.numbers import real, whole
from qsjax.cli.options import Options, add_config, quantizes, with_config
from qsjax.cli.sparse import add_sparse_options, chosen_recipe
from qsjax.errors import InputError, on_command_line
from qsjax.settings import MODULATION_WEIGHTS, Settings
from qsjax.settings.calibration import EPOCHS, SAMPLES
from qsjax.settings.video import TEXT_TOKENS
from qsjax.untrusted import shown

_VIDEO = ("frames", "height", "width", "steps")


def add_arguments(options: Options) -> None:
    """The options of `qsjax plan`."""
    options.add_argument(
        "--model",
        default="hunyuan-13b",
        help="preset of configs/models, 'tiny' for the bundled model, or a checkpoint folder",
    )
    options.add_argument(
        "--weights",
        help="quantization recipe: preset of configs/recipes or TOML file (default: what the sampling recipe is for, else the"
        " checkpoint's own, else w4a8)",
    )
    options.add_argument("--device", help="preset of configs/devices (default: all of them)")
    options.add_argument(
        "--compile",
        action="store_true",
        help="compile a step of each kind for --device, which need not be here, and print the compiler's count of bytes; minutes",
    )
    options.add_argument("--json", action="store_true", help="print the plan as JSON on stdout")
    add_config(options)
    _add_video(options.group("video and prompt"))
    _add_memory(options.group("memory"))
    _add_calibration(options.group("calibration", "what the last tables are of"))
    add_sparse_options(options)


def _add_video(options: Options) -> None:
    add_fields(options, Settings, only=_VIDEO, default="the model's")
    options.add_argument(
        "--text-tokens",
        type=whole(1, 1 << 20),
        default=TEXT_TOKENS,
        help="tokens of the prompt, padding included",
    )
    options.add_argument(
        "--density",
        type=real(1e-6, 1.0),
        default=0.15,
        help="share of attention that is computed; a sampling recipe has its own",
    )


def _add_memory(options: Options) -> None:
    options.add_argument(
        "--text-storage", choices=("int8",), help="dtype of the text encoders (default: bfloat16)"
    )
    options.add_argument(
        "--modulation",
        choices=MODULATION_WEIGHTS,
        default="released",
        help="whether modulation weights leave the device before the first step",
    )
    options.add_argument(
        "--shard-weights",
        action="store_true",
        help="shard the transformer's weights over the chips of a device; without it each chip has all of them",
    )


def _add_calibration(options: Options) -> None:
    options.add_argument(
        "--calibration-size",
        metavar="FxHxW",
        help="frames x height x width of the samples (default: the model's, at most 61x320x512)",
    )
    options.add_argument(
        "--samples", type=whole(1, 100_000), default=SAMPLES, help="number of samples"
    )
    options.add_argument(
        "--epochs", type=whole(1, 10_000), default=EPOCHS, help="passes over them, for every block"
    )
    options.add_argument(
        "--captions",
        type=whole(1, 100_000),
        help="videos that are sampled for them (default: one for each sample)",
    )
    options.add_argument(
        "--method",
        help="gptq, ptq, msad or tuned, as in qsjax calibrate (default: gptq, msad and tuned)",
    )
    options.add_argument(
        "--tune-steps",
        type=whole(0, 1_000_000),
        help="steps of tuning end to end (default: the method's)",
    )


def run(args: argparse.Namespace) -> int:
    """Plan and print.

    Raises:
        QsjaxError: no such model or recipe, or a value that the model cannot have.
    """
    args = with_config(args.options, args)
    from qsjax.budget import plan_memory

    # Until 0.1, --recipe could also name a quantization recipe.
    if args.recipe and quantizes(args.recipe):
        if args.weights:
            raise InputError(
                f"--recipe {args.recipe} is a quantization recipe, and so is --weights {args.weights}; leave one of them out"
            )
        args.recipe, args.weights = None, args.recipe
    changes = chosen_recipe(args)
    plan = plan_memory(
        args.model,
        weights=args.weights,
        recipe=args.recipe,
        sparse=None if changes is None else changes.sparse or False,
        skip=None if changes is None else changes.skip or False,
        **{name: getattr(args, name) for name in _VIDEO},
        text_tokens=args.text_tokens,
        text_storage=args.text_storage,
        modulation=args.modulation,
        shard_weights=args.shard_weights,
        density=args.density,
        calibration_size=_size(args.calibration_size),
        samples=args.samples,
        epochs=args.epochs,
        captions=args.captions,
        method=args.method,
        tune_steps=args.tune_steps,
        device=args.device,
        compile=args.compile,
    )
    for row in plan["sampling"]["devices"]:
        row["fits_with"] = list(map(on_command_line, row["fits_with"]))
    print(json.dumps(plan, indent=1) if args.json else plan)
    return 0


def _size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    if not (match := re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", text)):
        raise InputError(
            f"--calibration-size {shown(text, 40)}: give frames x height x width, as in 61x544x960"
        )
    frames, height, width = map(int, match.groups())
    return frames, height, width
