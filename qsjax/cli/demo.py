"""`qsjax demo`: convert the bundled tiny model, calibrate it, and sample videos with and without QuantSparse."""

import argparse
import json
import time
from dataclasses import replace
from itertools import chain
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
_ZOOM = 3
"""Of the videos of 64 x 64 pixels, so that their labels can be read."""


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
    from qsjax.cli.demo_report import label, text
    from qsjax.cli.ways import Way
    from qsjax.labels import side_by_side, write_strip
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
    clips: list[list[np.ndarray]] = []
    files: list[Path] = []
    for number, caption in enumerate(CAPTIONS):
        row = [way.sample(caption, seed=args.seed + number, steps=args.steps) for way in ways]
        clips.append(row)
        path = args.out / f"{number + 1}-{caption.replace(' ', '-')}.mp4"
        comment = f"{caption}; from left: {', '.join(way.name for way in ways)}"
        labelled = side_by_side(row, [way.name for way in ways], zoom=_ZOOM)
        files.append(write_video(labelled, path, fps=chosen.fps, comment=comment))
    for way in ways:
        seconds |= {f"{stage} {way.name}": spent for stage, spent in way.seconds.items()}
    names = [f"{way.name}: {caption}" for caption in CAPTIONS for way in ways]
    files.append(write_contact_sheet(list(chain(*clips)), names, sheet, zoom=2))
    components = manifest.components
    stored = [Manifest.read(folder).component("dit").bytes for folder in folders.values()]
    reports = [way.report(ways[0], chosen, stored[min(n, 1)]) for n, way in enumerate(ways)]
    rows = list(zip(*clips, strict=True))
    files.append(write_strip(rows, list(map(label, reports)), CAPTIONS, args.out / "strip.png"))
    seconds["all"] = time.perf_counter() - started
    report = {
        "checkpoints": {name: str(folder) for name, folder in folders.items()},
        "parameters": {name: part.parameters for name, part in components.items()},
        "dit_bytes": dict(zip(folders, stored, strict=True)),
        "calibration": summary(blocks),
        "ways": reports,
        "video": f"{chosen.frames}x{chosen.height}x{chosen.width}",
        "clips": len(CAPTIONS),
        "steps": chosen.steps,
        "seconds": {stage: round(spent, 2) for stage, spent in seconds.items()},
        "seconds_of_last_video": {k: round(v, 2) for k, v in ways[0].last.items()},
        "files": [str(path) for path in files],
    }
    print(json.dumps(report, indent=1) if args.json else text(report))
    return 0
