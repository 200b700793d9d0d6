"""`qsjax demo`: the whole way from PyTorch files to videos, on the bundled tiny model."""

import argparse
import json
import time
from pathlib import Path

CAPTIONS = (
    "a red circle moves left over dark stripes",
    "a green square moves up over a light background",
    "a blue triangle moves around over a dark gradient",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `qsjax demo`."""
    parser.add_argument("--out", type=Path, default=Path("qsjax-demo"), help="folder to write")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same videos")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo's files")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Convert, sample three captions, write mp4 files and a contact sheet, and say what took how long.

    Raises:
        QsjaxError: something the caller can mend.
    """
    started = time.perf_counter()
    from convert import Sources, convert
    from convert.bundled import tiny_model_directory
    from qsjax.pipeline import Pipeline
    from qsjax.video import check_writable, write_contact_sheet, write_video

    sheet = args.out / "contact_sheet.png"
    checkpoint = args.out / "checkpoint"
    check_writable(sheet, overwrite=args.overwrite)
    seconds = {"imports": time.perf_counter() - started}
    start = time.perf_counter()
    manifest = convert(Sources.find(tiny_model_directory()), checkpoint, overwrite=args.overwrite)
    seconds["convert"] = time.perf_counter() - start
    pipeline = Pipeline.from_checkpoint(checkpoint)
    chosen = pipeline.resolve(steps=args.steps)
    videos, files = [], []
    for number, caption in enumerate(CAPTIONS):
        videos.append(pipeline(caption, seed=args.seed + number, steps=args.steps))
        for stage, spent in pipeline.timings.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
        path = args.out / f"{number + 1}-{caption.replace(' ', '-')}.mp4"
        files.append(write_video(videos[-1], path, fps=chosen.fps, comment=caption))
    files.append(write_contact_sheet(videos, CAPTIONS, sheet, zoom=2))
    seconds["all"] = time.perf_counter() - started
    components = manifest.data["components"]
    report = {
        "checkpoint": str(checkpoint),
        "parameters": {name: part["parameters"] for name, part in components.items()},
        "video": f"{chosen.frames}x{chosen.height}x{chosen.width}",
        "steps": chosen.steps,
        "seconds": {stage: round(spent, 2) for stage, spent in seconds.items()},
        "seconds_of_last_video": {k: round(v, 2) for k, v in pipeline.timings.items()},
        "files": [str(path) for path in files],
    }
    print(json.dumps(report, indent=1) if args.json else _text(report))
    return 0


def _list(seconds: dict[str, float]) -> str:
    return ", ".join(f"{stage} {spent}" for stage, spent in seconds.items())


def _text(report: dict) -> str:
    parameters = ", ".join(f"{name} {count:,}" for name, count in report["parameters"].items())
    lines = [
        f"converted the bundled PyTorch files to {report['checkpoint']} (parameters: {parameters})",
        f"sampled {len(CAPTIONS)} videos of {report['video']} in {report['steps']} steps each",
        "seconds: " + _list(report["seconds"]),
        f"seconds of the last video, compiled before: {_list(report['seconds_of_last_video'])}",
        *(f"wrote {path}" for path in report["files"]),
        "The tiny model has HunyuanVideo's architecture at a three-thousandth of its size; it knows moving shapes only.",
    ]
    return "\n".join(lines)
