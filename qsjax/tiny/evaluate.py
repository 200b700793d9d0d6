"""`python -m qsjax.tiny.evaluate`: how well a checkpoint of the tiny model follows captions it has not seen drawn.

Held-out captions come from a stream of scenes that no training used; every one is sampled from noise of its own,
decoded by the VAE to 8-bit frames, and read back by `qsjax.tiny.checker`. Real clips measure the VAE by itself.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from qsjax.calibration import SettingsChanges
from qsjax.errors import InputError, QsjaxError, on_command_line
from qsjax.pipeline import Pipeline
from qsjax.progress import Progress
from qsjax.tiny import checker, data, sheets
from qsjax.tiny.streams import HELD_OUT, held_out


def evaluate(
    pipeline: Pipeline,
    pairs: int,
    *,
    seed: int,
    batch: int = 8,
    sheet: Path | None = None,
    **settings: Unpack[SettingsChanges],
) -> dict[str, Any]:
    """Sample held-out captions and score them.

    Args:
        pipeline: the model.
        pairs: (caption, seed) pairs; pair i has scene i of the held-out stream and the noise of `seed + i`.
        seed: of the noise.
        batch: videos sampled at once.
        sheet: PNG of the first dozen.
        **settings: of the pipeline's call.

    Returns:
        Scores over all pairs ("all"), and over those with one and with two objects.
    """
    scenes = held_out(HELD_OUT, pairs)
    videos: list[np.ndarray] = []
    start = time.perf_counter()
    with Progress(pairs, "sample", unit="video") as bar:
        for first in range(0, pairs, batch):
            captions = [scene.caption for scene in scenes[first : first + batch]]
            frames = pipeline(captions, seed=seed + first, **settings)
            videos.extend(np.moveaxis(frames, -1, 1) / 127.5 - 1)
            bar.advance(len(captions))
    if sheet is not None:
        sheets.write(videos, scenes, sheet)
    scores = {"all": checker.score(zip(videos, scenes, strict=True))._asdict()}
    for objects, name in ((1, "one_object"), (2, "two_objects")):
        chosen = [
            pair for pair in zip(videos, scenes, strict=True) if len(pair[1].objects) == objects
        ]
        if chosen:
            scores[name] = checker.score(chosen)._asdict()
    return {"seed": seed, "seconds": round(time.perf_counter() - start, 1), "scores": scores}


def reconstruction(pipeline: Pipeline, clips: int = 16) -> float:
    """Mean PSNR of held-out clips of the default size that the VAE encoded and decoded, in the pipeline's tiles."""
    size = (pipeline.settings.frames, pipeline.settings.height, pipeline.settings.width)
    videos = [data.render(scene, *size) for scene in held_out(HELD_OUT, clips)]
    vae, decoded = pipeline.vae, []
    for video in videos:
        latents = vae.encode(video[None]).mode()
        decoded.append(np.asarray(vae.decode(latents, pipeline.tiling)[0]))
    return sheets.decibels(videos, decoded)


def main(arguments: list[str] | None = None) -> int:
    """Print the VAE's PSNR and scores for each seed; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m qsjax.tiny.evaluate", description=__doc__)
    parser.add_argument("--model", default="tiny", help="checkpoint folder (default: the bundle)")
    parser.add_argument("--pairs", type=int, default=128, help="videos a seed (default: 128)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1000], help="of the noise (default: 0 1000)"
    )
    parser.add_argument("--batch", type=int, default=8, help="videos at once (default: 8)")
    parser.add_argument("--frames", type=int, help="4k+1 (default: the checkpoint's)")
    parser.add_argument("--size", type=int, help="pixels on a side (default: the checkpoint's)")
    parser.add_argument("--steps", type=int, help="Euler steps (default: the checkpoint's)")
    parser.add_argument("--guidance", type=float, help="embedded scale (default: the checkpoint's)")
    parser.add_argument("--sheet", type=Path, help="PNG of the first dozen videos of each seed")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        report = _report(options)
    except QsjaxError as error:
        print(f"qsjax.tiny.evaluate: {on_command_line(error)}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=1))
    return 0


def _report(options: argparse.Namespace) -> dict[str, Any]:
    if options.pairs < 1 or options.batch < 1:
        raise InputError(f"`pairs={options.pairs}, batch={options.batch}`: both must be 1 or more")
    pipeline = (
        Pipeline.tiny(progress=False)
        if options.model == "tiny"
        else Pipeline.from_checkpoint(options.model, progress=False)
    )
    settings: SettingsChanges = {
        "frames": options.frames,
        "height": options.size,
        "width": options.size,
        "steps": options.steps,
        "guidance": options.guidance,
    }
    samples = [
        evaluate(
            pipeline,
            options.pairs,
            seed=seed,
            batch=options.batch,
            sheet=options.sheet and options.sheet.with_stem(f"{options.sheet.stem}-{seed}"),
            **settings,
        )
        for seed in options.seeds
    ]
    return {
        "vae_psnr": round(reconstruction(pipeline, min(16, options.pairs)), 2),
        "samples": samples,
    }


if __name__ == "__main__":
    sys.exit(main())
