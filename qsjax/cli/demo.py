"""`qsjax demo`: convert the bundled tiny model, calibrate it, and sample videos with and without QuantSparse."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from qsjax.cli.numbers import whole
from qsjax.cli.options import Options

CAPTIONS = (
    "a red circle moves left over dark stripes",
    "a green square moves up over a light background",
    "a blue triangle moves around over a dark gradient",
)
# A quick calibration, which trains nothing: it is better than a few epochs of training whose weights are rounded to nearest.
_METHOD, _SAMPLES = "gptq", 8


def add_arguments(options: Options) -> None:
    """The options of `qsjax demo`."""
    options.add_argument("--out", type=Path, default=Path("qsjax-demo"), help="folder to write")
    options.add_argument(
        "--steps", type=whole(1, 10_000), help="denoising steps (default: the model's)"
    )
    options.add_argument("--seed", type=whole(0), default=0, help="same seed, same videos")
    options.add_argument("--overwrite", action="store_true", help="replace an earlier demo's files")
    options.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Convert, calibrate to W4A8, sample three captions in four ways, write mp4 files and a contact sheet.

    Raises:
        QsjaxError: an error that the user can fix.
    """
    started = time.perf_counter()
    from convert import Sources, convert
    from convert.bundled import tiny_model_directory
    from qsjax.calibration import METHODS, gather
    from qsjax.calibration.checkpoint import calibrate_checkpoint
    from qsjax.calibration.report import summary
    from qsjax.checkpoint import Manifest
    from qsjax.cli.ways import Way
    from qsjax.pipeline import Pipeline
    from qsjax.quant import Recipe
    from qsjax.residual import Residual
    from qsjax.sample import SparsePlan
    from qsjax.sparse import Sparsity
    from qsjax.tiny.streams import CALIBRATION, held_out
    from qsjax.video import check_writable, write_contact_sheet, write_video

    sheet = args.out / "contact_sheet.png"
    folders = {"float": args.out / "checkpoint", "W4A8": args.out / "checkpoint-w4a8"}
    check_writable(sheet, overwrite=args.overwrite)
    seconds = {"imports": time.perf_counter() - started}
    start = time.perf_counter()
    convert(Sources.find(tiny_model_directory()), folders["float"], overwrite=args.overwrite)
    seconds["convert"] = time.perf_counter() - start
    pipeline = Pipeline.from_checkpoint(folders["float"])
    start = time.perf_counter()
    training_captions = [scene.caption for scene in held_out(CALIBRATION, _SAMPLES)]
    manifest, blocks = calibrate_checkpoint(
        folders["float"],
        folders["W4A8"],
        lambda folder: gather(
            pipeline,
            training_captions,
            samples=_SAMPLES,
            whole=False,
            folder=folder,
            steps=args.steps,
        ),
        Recipe.load("w4a8"),
        METHODS[_METHOD],
        described={"captions": training_captions, "steps": args.steps},
        dtype=pipeline.dtype,
        overwrite=args.overwrite,
    )
    seconds["calibrate"] = time.perf_counter() - start
    chosen = pipeline.resolve(steps=args.steps)
    pipelines = {"float": pipeline, "W4A8": Pipeline.from_checkpoint(folders["W4A8"])}
    sparsity = Sparsity(mask="svg", density=0.15)
    # As in the recipes of configs/sampling: a tenth of the steps is dense.
    quantsparse = SparsePlan(
        sparsity=sparsity, residual=Residual(store="int8"), dense_steps=max(1, chosen.steps // 10)
    )
    no_cache = replace(quantsparse, residual=Residual(policy="none"), interval=0)
    ways = [
        Way("full precision", pipelines["float"], None),
        Way("W4A8", pipelines["W4A8"], None),
        Way("W4A8 + 15 %, no cache", pipelines["W4A8"], no_cache),
        Way("QuantSparse", pipelines["W4A8"], quantsparse),
    ]
    videos: list[np.ndarray] = []
    names: list[str] = []
    files: list[Path] = []
    for number, caption in enumerate(CAPTIONS):
        row = [way.sample(caption, seed=args.seed + number, steps=args.steps) for way in ways]
        videos += row
        names += [f"{way.name}: {caption}" for way in ways]
        path = args.out / f"{number + 1}-{caption.replace(' ', '-')}.mp4"
        comment = f"{caption}; from left: {', '.join(way.name for way in ways)}"
        files.append(
            write_video(np.concatenate(row, axis=2), path, fps=chosen.fps, comment=comment)
        )
    for way in ways:
        seconds |= {f"{stage} {way.name}": spent for stage, spent in way.seconds.items()}
    files.append(write_contact_sheet(videos, names, sheet, zoom=2))
    seconds["all"] = time.perf_counter() - started
    components = manifest.components
    stored = [Manifest.read(folder).component("dit").bytes for folder in folders.values()]
    report = {
        "checkpoints": {name: str(folder) for name, folder in folders.items()},
        "parameters": {name: part.parameters for name, part in components.items()},
        "dit_bytes": dict(zip(folders, stored, strict=True)),
        "calibration": summary(blocks),
        "ways": [way.report(ways[0], chosen, stored[min(n, 1)]) for n, way in enumerate(ways)],
        "video": f"{chosen.frames}x{chosen.height}x{chosen.width}",
        "steps": chosen.steps,
        "seconds": {stage: round(spent, 2) for stage, spent in seconds.items()},
        "seconds_of_last_video": {k: round(v, 2) for k, v in ways[0].last.items()},
        "files": [str(path) for path in files],
    }
    print(json.dumps(report, indent=1) if args.json else _text(report))
    return 0


def _list(seconds: dict[str, float]) -> str:
    return ", ".join(f"{stage} {spent}" for stage, spent in seconds.items())


def _table(ways: list[dict]) -> str:
    from qsjax.evaluate.tables import markdown

    headers = [
        *("way", "PSNR, dB", "SSIM", "attention, sparse step", "attention, all steps"),
        *("transformer", "cache", "denoising"),
    ]
    rows = []
    for way in ways:
        first = way["psnr"] is None
        rows.append([
            way["name"],
            "" if first else f"{way['psnr']:.1f}",
            "" if first else f"{way['ssim']:.3f}",
            f"{100 * way['density']:.0f} %",
            f"{100 * way['mean_density']:.0f} %",
            f"{way['dit_bytes'] / 1e6:.1f} MB",
            f"{way['cache_bytes'] / 1e6:.1f} MB",
            f"{way['seconds_a_video']:.1f} s",
        ])  # fmt: skip
    return markdown(headers, rows)


def _text(report: dict) -> str:
    parameters = ", ".join(f"{name} {count:,}" for name, count in report["parameters"].items())
    sizes, calibrated = report["dit_bytes"], report["calibration"]
    lines = [
        f"converted the bundled PyTorch files to {report['checkpoints']['float']} (parameters: {parameters})",
        f"calibrated it to {report['checkpoints']['W4A8']}: transformer {sizes['float'] / sizes['W4A8']:.2f} times smaller,"
        f" block errors {calibrated['output_error']:.2f} of round-to-nearest's",
        f"sampled {len(CAPTIONS)} videos of {report['video']} in {report['steps']} steps each, in {len(report['ways'])} ways:",
        _table(report["ways"]),
        "seconds: " + _list(report["seconds"]),
        f"seconds of the last video, compiled before: {_list(report['seconds_of_last_video'])}",
        *(f"wrote {path}" for path in report["files"]),
        "The tiny model has HunyuanVideo's architecture at a three-thousandth of its size; it knows moving shapes only.",
        "At this size sparse attention saves little time; a video of 8,224 tokens took half as long (`qsjax bench sample`).",
    ]
    return "\n".join(lines)
