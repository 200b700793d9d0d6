"""`qsjax sample`: a video from a prompt."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qsjax.cli.fields import add_fields
from qsjax.cli.kernels import add_kernels, given_kernels
from qsjax.cli.numbers import whole
from qsjax.cli.options import Options, add_config, add_no_verify, with_config
from qsjax.cli.sparse import add_sparse_options, chosen_recipe
from qsjax.errors import InputError, QsjaxError, on_command_line
from qsjax.settings import DENSE, MODULATION_WEIGHTS, REFRESH, Settings

if TYPE_CHECKING:
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
    options.add_argument("--seed", type=int, default=0, help="same seed, same video")
    options.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="dtype of weights and matmuls (default: bfloat16 on TPU and GPU, float32 on CPU)",
    )
    options.add_argument(
        "--text-storage", choices=("int8",), help="hold the text encoders in 8 bits"
    )
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
    options.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="to run on several hosts: address of the first host, or 'auto' on Cloud TPUs and under Slurm. Start the same command"
        " on each host; --devices counts the devices of all hosts, and the first host writes the file",
    )
    options.add_argument(
        "--hosts", type=whole(1, 65_536), help="with --coordinator HOST:PORT: number of hosts"
    )
    options.add_argument(
        "--host",
        type=whole(0, 65_535),
        help="with --coordinator HOST:PORT: number of this host, from 0",
    )
    add_no_verify(options)
    add_sparse_options(options)
    add_kernels(options)
    options.add_argument("--out", type=Path, default=Path("out.mp4"), help="mp4 file to write")
    options.add_argument("--overwrite", action="store_true", help="replace the output file")
    options.add_argument("--json", action="store_true", help="print a report as JSON on stdout")
    add_config(options)


def run(args: argparse.Namespace) -> int:
    """Sample one video, or save an encoded prompt.

    Raises:
        QsjaxError: an error that the user can fix.
    """
    args = with_config(args.options, args)
    if bool(args.prompt.strip()) == (args.encoded_prompt is not None):
        raise InputError("give either --prompt (not empty) or --encoded-prompt FILE")
    from qsjax.pipeline import Pipeline
    from qsjax.sample import check_seed
    from qsjax.text import save_prompts
    from qsjax.video import check_fps, check_writable, write_video

    check_seed(args.seed)
    first = _join_hosts(args)
    storage = {
        "dtype": args.dtype,
        "text_storage": args.text_storage,
        "modulation": args.modulation,
        "devices": args.devices,
        "shard_weights": args.shard_weights,
        "kernels": given_kernels(args),
        "staged": True,  # for a single video, each model is read only once anyway
        "progress": first,
        "verify": not args.no_verify,
    }
    pipeline = (
        Pipeline.tiny(**storage)
        if args.model == "tiny"
        else Pipeline.from_checkpoint(args.model, **storage)
    )
    if args.save_prompt is not None:
        encoded = pipeline.encode(args.prompt)
        if first:
            save_prompts(args.save_prompt, encoded, [args.prompt])
            _print(args, {"out": str(args.save_prompt), "seconds": pipeline.timings})
        return 0
    changes = {name: getattr(args, name) for name in _SETTINGS}
    changes["recipe"] = chosen_recipe(args, pipeline.settings)
    settings = pipeline.resolve(**changes)
    fps, pixels = settings.fps, settings.frames * settings.height * settings.width
    check_fps(fps)
    if first:
        check_writable(args.out, overwrite=args.overwrite, pixels=pixels)
    del changes["fps"]
    prompt = _encoded(args.encoded_prompt) if args.encoded_prompt else args.prompt
    start = time.perf_counter()
    result = pipeline.generate(
        prompt, negative_prompt=args.negative_prompt, seed=args.seed, **changes
    )
    if not first:
        return 0
    video = result.frames[0] if result.frames.ndim == 5 else result.frames
    steps = result.settings.steps
    comment = f"qsjax {args.model}, seed {args.seed}, {steps} steps: {args.prompt}"
    write_video(video, args.out, fps=fps, comment=comment)
    report = {
        "out": str(args.out),
        "frames": video.shape[0],
        "height": video.shape[1],
        "width": video.shape[2],
        "seed": args.seed,
        "steps": steps,
        "steps_left_out": result.skipped,
        "seconds": {**result.timings, "all": time.perf_counter() - start},
    }
    if result.heads is not None:
        report["attention"] = result.heads.plain()
        refreshes = [step for step, kind in enumerate(result.kinds) if kind == REFRESH]
        report["refreshes"], report["dense_steps"] = refreshes, result.kinds.count(DENSE)
    _print(args, report)
    return 0


def _encoded(path: Path) -> "EncodedPrompt":
    """The encoded prompt of a file, of which one video is made."""
    from qsjax.text import load_prompts

    encoded = load_prompts(path)
    if (count := encoded.pooled.shape[0]) > 1:
        raise InputError(
            f"{path}: holds {count} prompts, and one video is written; encode the one you want with --prompt and --save-prompt,"
            f" or sample all of them in Python with `qsjax.Pipeline`"
        )
    return encoded


def _join_hosts(args: argparse.Namespace) -> bool:
    """Join the other hosts, if there are any, and check that the first host can write its file.

    Returns:
        Whether this is the first host, which writes the file.
    """
    from qsjax.video import check_writable

    target = args.save_prompt or args.out
    if args.coordinator is None:
        if args.hosts is not None or args.host is not None:
            raise InputError("--hosts and --host go with --coordinator HOST:PORT; give all three")
        check_writable(target, overwrite=args.overwrite)
        return True
    from qsjax.parallel import first_agrees, is_first, join

    join(args.coordinator, args.hosts, args.host, give_up=_end)
    problem = None
    if is_first():
        try:
            check_writable(target, overwrite=args.overwrite)
        except InputError as error:
            problem = error
    if not first_agrees(problem is None):
        raise problem or InputError("the first host cannot write its file; its message says why")
    return is_first()


def _end(error: QsjaxError) -> None:
    """Print an error and end the process at once: the main thread waits inside JAX, where no exception reaches it."""
    print(f"error: {on_command_line(error)}", file=sys.stderr, flush=True)
    os._exit(2)


def _print(args: argparse.Namespace, report: dict) -> None:
    if args.json:
        print(json.dumps(report, indent=1))
        return
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["seconds"].items())
    size = (
        f"{report['frames']}x{report['height']}x{report['width']}, " if "frames" in report else ""
    )
    skipped = report.get("steps_left_out", 0)
    steps = f"{skipped} of {report['steps']} steps left out, " if skipped else ""
    if (heads := report.get("attention")) is not None:
        least = heads["least"]
        print(
            f"sparse steps computed {100 * heads['density']:.1f} % of the pairs, which hold {100 * heads['recall']:.1f} % of the"
            f" attention mass; least in head {least['head']} of layer {least['layer']}, {100 * least['recall']:.1f} %"
        )
        refreshes = ", ".join(map(str, report["refreshes"]))
        print(f"{report['dense_steps']} steps were dense; refreshes were steps {refreshes}")
    print(f"wrote {report['out']} ({size}{steps}{stages})")
