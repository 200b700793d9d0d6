"""`python -m qsjax.experiments.rollout`: W4A8 tuned step by step and through rollouts, on the bundled model."""

import argparse
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qsjax.calibration import METHODS, calibrate_module, walk
from qsjax.calibration.tuning import tune
from qsjax.dit import DiT
from qsjax.evaluate.metrics import psnr
from qsjax.evaluate.reference import Reference, reference_run
from qsjax.evaluate.statistics import estimate, paired
from qsjax.evaluate.tables import markdown, shown
from qsjax.experiments.clips import Clips
from qsjax.experiments.options import add_clips, add_size, size_of
from qsjax.experiments.rollout.tuner import RolloutTuner, tune_through_rollouts
from qsjax.experiments.sparse.sampling import sampled
from qsjax.params import map_parameters
from qsjax.pipeline import Pipeline
from qsjax.progress import Progress
from qsjax.quant import Recipe
from qsjax.residual import Residual
from qsjax.sample import SparsePlan
from qsjax.sparse import Sparsity


def main() -> None:
    """Calibrate once, tune in all ways, sample with dense and with sparse attention, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_clips(parser, captions=32)
    parser.add_argument("--rollouts", type=int, default=60)
    add_size(parser)
    args = parser.parse_args()
    size = size_of(args)
    pipeline = Pipeline.tiny(dtype="float32", progress=False, staged=False)
    clips = Clips.take(args.captions, stream=args.stream, seed=args.seed, first=0)
    noise = clips.calibration_noise(args.seed)
    captions = clips.calibration_captions(args.samples, args.seed)
    runs = walk(pipeline, captions, seed=noise, progress=True, **size)
    method = METHODS["tuned"]
    rounded, _ = calibrate_module(
        pipeline.dit,
        runs.samples(args.samples, noise),
        Recipe.load("w4a8"),
        replace(method, tune_steps=0),
        seed=noise,
        progress=True,
    )
    leaves, _ = tune(rounded, runs, method, seed=noise, progress=True)
    tuned = map_parameters(lambda name, value: jnp.asarray(leaves.get(name, value)), rounded)
    sparse = SparsePlan(
        sparsity=Sparsity(mask="svg", density=0.15),
        residual=Residual(store="float32", rank=16),
        interval=5,
        dense_steps=1,
    )
    # The low-rank part of the cache is found by iterations that need no gradient: without it a cache loses nothing.
    whole = replace(sparse, residual=replace(sparse.residual, rank=0))
    plan = pipeline.resolve(**size).plan()
    tuner = RolloutTuner(replace(plan, sparse=whole), args.rollouts)
    models = {
        "rounded": rounded,
        "step by step": tuned,
        "rollouts": tune_through_rollouts(rounded, runs, tuner, seed=noise)[0],
        "step by step, then rollouts": tune_through_rollouts(tuned, runs, tuner, seed=noise)[0],
    }
    reference = reference_run(pipeline, clips.captions, seed=clips.noise, progress=True, **size)
    print(table({n: measured(pipeline, reference, dit, sparse) for n, dit in models.items()}))


Figures = dict[str, Float[np.ndarray, " clips"]]


def measured(pipeline: Pipeline, reference: Reference, dit: DiT, sparse: SparsePlan) -> Figures:
    """PSNR and relative latent error of every clip, with dense and with sparse attention."""
    found: dict[str, list[np.ndarray]] = {}
    total = 2 * reference.settings.steps * len(reference.batches)
    with Progress(total, "compare", unit="step") as bar:
        for way, plan in (("dense", None), ("sparse", sparse)):
            for batch in reference.batches:
                chosen = replace(reference.settings.plan(), sparse=plan)
                latents, last = sampled(chosen, dit, batch, bar)[0], batch.trajectory[-1]
                axes = tuple(range(1, last.ndim))
                error = np.square(latents - last).sum(axis=axes) / np.square(last).sum(axis=axes)
                frames = pipeline.decode(jnp.asarray(latents))
                found.setdefault(f"{way}, latent error", []).append(error)
                found.setdefault(f"{way}, PSNR, dB", []).append(psnr(frames, batch.frames))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def table(figures: dict[str, Figures]) -> str:
    """A row a model; differences to the second, clip by clip."""
    names = list(figures)
    titles, base = list(figures[names[0]]), figures[names[1]]
    headers = [
        "tuned",
        *(title for name in titles for title in (name, f"over {names[1]}")),
    ]
    rows = []
    for name, values in figures.items():
        row = [name]
        for title in titles:
            digits = 4 if title.endswith("error") else 1
            row.append(shown(estimate(values[title]), digits))
            difference = paired(values[title], base[title])
            row.append("" if values is base else shown(difference, digits, signed=True))
        rows.append(row)
    return markdown(headers, rows)


if __name__ == "__main__":
    main()
