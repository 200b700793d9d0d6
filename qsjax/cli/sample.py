"""`qsjax sample`: a video from a prompt."""

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsjax.cli.compare import ReferenceRun, add_compare, check_compare
from qsjax.cli.fields import add_fields
from qsjax.cli.hosts import add_hosts, join_hosts
from qsjax.cli.kernels import add_kernels, given_kernels
from qsjax.cli.like import say_differences, take_over
from qsjax.cli.numbers import whole
from qsjax.cli.options import Options, add_config, add_no_verify, add_precision, with_config
from qsjax.cli.prompts import check_options, run_prompts
from qsjax.cli.sample_report import describe, print_report
from qsjax.cli.sparse import add_sparse_options, chosen_recipe
from qsjax.errors import InputError
from qsjax.settings import MODULATION_WEIGHTS, SamplingRecipe, Settings

if TYPE_CHECKING:
    from qsjax.pipeline import Pipeline
    from qsjax.provenance import Provenance
    from qsjax.text import EncodedPrompt

_SETTINGS = ("frames", "height", "width", "steps", "shift", "guidance", "true_cfg", "fps")


def add_arguments(options: Options) -> None:
    """The options of `qsjax sample`."""
    options.add_argument(
        "--model", default="tiny", help="checkpoint folder, or 'tiny' for the bundled model"
    )
    options.add_argument("--prompt", default="", help="what the video shows")
    options.add_argument(
        "--negative-prompt", help="with --true-cfg above 1 (default: the checkpoint's)"
    )
    options.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="many videos into the folder --out: a prompt a line, or JSON lines (FILE.jsonl) with prompt and, where they differ,"
        " out, seed, negative_prompt, guidance, steps, frames, ...; goes on where it stopped",
    )
    options.add_argument(
        "--like",
        metavar="VIDEO",
        type=Path,
        help="make a video again that qsjax wrote: its prompt, seed and settings, unless they are typed here; says what differs",
    )
    options.add_argument(
        "--encoded-prompt",
        metavar="FILE",
        type=Path,
        help="encoded prompt saved by --save-prompt; then no text encoder is loaded",
    )
    options.add_argument(
        "--save-prompt",
        metavar="FILE",
        type=Path,
        help="save the encoded prompt (safetensors) and stop before sampling",
    )
    add_fields(options, Settings, only=_SETTINGS, default="the checkpoint's")
    options.add_argument("--seed", type=int, help="same seed, same video (default: 0)")
    add_precision(options)
    options.add_argument(
        "--modulation",
        choices=MODULATION_WEIGHTS,
        default="resident",
        help="released: modulation weights are read for a prompt and dropped before its first step; the video is the same",
    )
    options.add_argument(
        "--devices",
        type=whole(1, 65_536),
        default=1,
        help="number of devices that share the transformer's tokens and heads",
    )
    options.add_argument(
        "--shard-weights",
        action="store_true",
        help="shard the transformer's weights over the devices too; without it each has all of them",
    )
    add_hosts(options)
    add_no_verify(options)
    add_sparse_options(options)
    add_kernels(options)
    options.add_argument(
        "--out",
        type=Path,
        help="mp4 file to write (default: out.mp4); with --prompts, the folder of all",
    )
    options.add_argument(
        "--preview",
        metavar="STEPS",
        type=whole(1, 10_000),
        help="every so many steps, show in OUT.preview.png what the video will be; the first preview of a model encodes a few"
        " synthetic clips",
    )
    add_compare(options)
    options.add_argument("--overwrite", action="store_true", help="replace the output file")
    options.add_argument("--json", action="store_true", help="print a report as JSON on stdout")
    add_config(options)


def run(args: argparse.Namespace) -> int:
    """Sample a video, or one for every line of a file, or save an encoded prompt; the exit status is 1 if a line has none.

    Raises:
        QsjaxError: an error that the user can fix.
    """
    args = with_config(args.options, args)
    if args.prompts is not None:
        check_options(args)
        settings = {name: getattr(args, name) for name in _SETTINGS}
        return run_prompts(args, partial(_open, args, progress=True), settings)
    check_compare(args)
    args.out = args.out or Path("out.mp4")
    made = None
    if args.like is not None:
        from qsjax.provenance import read_provenance

        made = read_provenance(args.like)
        take_over(args, made, _SETTINGS)
    if bool(args.prompt.strip()) == (args.encoded_prompt is not None):
        raise InputError(
            "give either --prompt (not empty), --prompts FILE, --encoded-prompt FILE or --like VIDEO"
        )
    if args.save_prompt is not None and args.negative_prompt:
        raise InputError("--save-prompt saves --prompt alone; leave --negative-prompt out")
    from qsjax.preview import PreviewSheet
    from qsjax.sample import check_seed
    from qsjax.text import save_prompts
    from qsjax.video import check_fps, check_writable, write_video

    seed = args.seed or 0
    check_seed(seed)
    first = join_hosts(args, args.save_prompt or args.out)
    pipeline = _open(args, progress=first)
    if args.save_prompt is not None:
        encoded = pipeline.encode(args.prompt)
        if first:
            save_prompts(args.save_prompt, encoded, [args.prompt])
            print_report(args, {"out": str(args.save_prompt), "seconds": pipeline.timings})
        return 0
    stored = pipeline.settings if made is None else made.settings
    changes = {name: getattr(args, name) for name in _SETTINGS}
    changes["recipe"] = chosen_recipe(args, stored)
    if made is not None and changes["recipe"] is None:
        changes["recipe"] = SamplingRecipe.of_plan(stored)
    settings = pipeline.resolve(**changes)
    fps, pixels = settings.fps, settings.frames * settings.height * settings.width
    check_fps(fps)
    if first:
        check_writable(args.out, overwrite=args.overwrite, pixels=pixels)
    del changes["fps"]
    against = ReferenceRun.asked(args, pipeline, settings, partial(_open, args, progress=True))
    prompt, text = args.prompt, args.prompt
    if args.encoded_prompt is not None:
        prompt, text = _encoded(args.encoded_prompt)
    if args.negative_prompt is not None:
        settings = replace(settings, negative_prompt=args.negative_prompt)
    here = pipeline.provenance(
        text, settings, seed=seed, recipe=_name(args, made), encoded=prompt is not text
    )
    differences = None if made is None else say_differences(made, here)
    start = time.perf_counter()
    preview = PreviewSheet(args.out, settings.steps) if args.preview and first else None
    result = pipeline.generate(
        prompt,
        negative_prompt=args.negative_prompt,
        seed=seed,
        callback=preview or (lambda *_: None),
        preview=args.preview or 0,
        **changes,
    )
    if not first:
        return 0
    video = result.frames[0] if result.frames.ndim == 5 else result.frames
    write_video(video, args.out, fps=fps, comment=here.to_json())
    report = describe(args, result, video)
    if against is not None:
        pipeline.release()
        report["compare"] = against.compare(prompt, video, settings, seed=seed)
    report["seconds"]["all"] = time.perf_counter() - start
    if differences is not None:
        report["differences"] = differences
    if preview is not None:
        report["preview"] = str(preview.path)
    print_report(args, report)
    return 0


def _open(args: argparse.Namespace, model: str | None = None, *, progress: bool) -> "Pipeline":
    from qsjax.pipeline import Pipeline

    storage: dict[str, Any] = {
        "dtype": args.dtype,
        "text_storage": args.text_storage,
        "modulation": args.modulation,
        "devices": args.devices,
        "shard_weights": args.shard_weights,
        "kernels": given_kernels(args),
        "staged": True,  # each model is read only once anyway
        "progress": progress,
        "verify": not args.no_verify,
    }
    model = model or args.model
    if model == "tiny":
        # All of it fits any memory, and to drop a model is a walk through all of Python's objects.
        return Pipeline.tiny(**storage | {"staged": None})
    return Pipeline.from_checkpoint(model, **storage)


def _name(args: argparse.Namespace, made: "Provenance | None") -> str:
    """Of the sampling recipe; a file's without its folder."""
    if args.recipe is not None:
        return Path(args.recipe).name
    return "" if made is None else made.recipe


def _encoded(path: Path) -> "tuple[EncodedPrompt, str]":
    """The encoded prompt of a file, of which one video is made, and its text."""
    from qsjax.text import load_prompts, read_texts

    encoded = load_prompts(path)
    if (count := encoded.pooled.shape[0]) > 1:
        raise InputError(
            f"{path}: holds {count} prompts, and one video is written; encode the one you want with --prompt and --save-prompt,"
            f" or sample all of them in Python with `qsjax.Pipeline`"
        )
    return encoded, read_texts(path)[0]
