"""`qsjax sample --prompts FILE --out DIR`: a video for every line of a file."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsjax.cli.sparse import chosen_recipe
from qsjax.errors import InputError, on_command_line
from qsjax.untrusted.files import shown_path

if TYPE_CHECKING:
    from qsjax.jobs import Done, Job, Refused
    from qsjax.pipeline import Pipeline

_OTHERS = {
    "prompt": "each line has one",
    "encoded_prompt": "lines are texts, whose encodings are kept until their video is there",
    "save_prompt": "it saves one",
    "like": "it repeats one video",
    "compare": "it compares one",
    "coordinator": "it runs on one host",
}
"""Options that do not go with it, and why."""


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go with `--prompts`.

    Raises:
        InputError: names the option.
    """
    for name, reason in _OTHERS.items():
        if getattr(args, name):
            option = name.replace("_", "-")
            raise InputError(f"--{option} does not go with --prompts: {reason}; leave it out")
    if args.out is None:
        raise InputError("--prompts needs --out DIR, the folder of all videos")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"{shown_path(args.out)}: is no folder; name one for all videos")


def run_prompts(
    args: argparse.Namespace, open_model: "Callable[[], Pipeline]", settings: Mapping[str, Any]
) -> int:
    """Sample every line; the exit status is 1 if there is no video of one.

    Args:
        args: the parsed arguments.
        open_model: opens the checkpoint, when the file has been read.
        settings: arguments of `Pipeline.resolve` that are the same for all lines, but for the recipe.

    Raises:
        QsjaxError: nothing can be sampled at all.
    """
    from qsjax.jobs import plan_jobs, read_requests, sample_jobs

    source = shown_path(args.prompts)

    def say(refused: "Refused") -> None:
        line = on_command_line(f"{source} line {refused.line}: {refused.reason}")
        print(f"error: {line}", file=sys.stderr, flush=True)

    requests, unusable = read_requests(args.prompts)
    pipeline = open_model()
    jobs, refused = plan_jobs(
        pipeline,
        requests,
        args.out,
        seed=args.seed or 0,
        negative_prompt=args.negative_prompt,
        recipe_name="" if args.recipe is None else Path(args.recipe).name,
        recipe=chosen_recipe(args, pipeline.settings),
        **settings,
    )
    refused = sorted([*unusable, *refused])
    for one in refused:
        say(one)
    try:
        done = sample_jobs(
            pipeline,
            jobs,
            args.out,
            overwrite=args.overwrite,
            preview=args.preview or 0,
            failed=say,
        )
    except KeyboardInterrupt:
        print("the same command goes on where it stopped", file=sys.stderr)
        raise
    _print(args, jobs, done, sorted([*refused, *done.failed]))
    return 1 if refused or done.failed else 0


def _print(
    args: argparse.Namespace, jobs: "list[Job]", done: "Done", failed: "list[Refused]"
) -> None:
    if not args.json:
        counts = [f"{len(done.written)} written"]
        counts += [f"{len(done.there)} were there"] if done.there else []
        counts += [f"{len(failed)} failed"] if failed else []
        print(f"{args.out}: {', '.join(counts)}")
        return
    videos = [
        {
            "line": job.line,
            "out": str(job.out),
            "prompt": job.made.prompt,
            "seed": job.made.seed,
            "seconds": done.written.get(job.line),
        }
        for job in jobs
        if job.line in done.written or job.line in done.there
    ]
    failures = [{"line": one.line, "error": on_command_line(one.reason)} for one in failed]
    print(json.dumps({"out": str(args.out), "videos": videos, "failed": failures}, indent=1))
