"""`python -m qsjax.experiments.influence`: what the quantization of one step alone does to the last latents, on the bundled model."""

import argparse
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qsjax.calibration import calibrate_module, collect
from qsjax.calibration.methods import method
from qsjax.dit import DiT
from qsjax.evaluate.reference import Batch, dense_programs, reference_run
from qsjax.evaluate.statistics import estimate
from qsjax.evaluate.tables import markdown, shown
from qsjax.experiments.clips import Clips
from qsjax.experiments.options import add_clips, add_size, size_of
from qsjax.pipeline import Pipeline
from qsjax.progress import Progress
from qsjax.quant import Recipe
from qsjax.sample import SamplingPlan, schedule
from qsjax.sample.loop import step_at

Errors = Float[np.ndarray, "steps clips"]


def main() -> None:
    """Calibrate, take each step once with the quantized model, print a line a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_clips(parser, captions=16)
    parser.add_argument("--recipe", default="w4a8")
    parser.add_argument("--method", default="gptq")
    add_size(parser)
    args = parser.parse_args()
    size = size_of(args)
    pipeline = Pipeline.tiny(dtype="float32", progress=False, staged=False)
    clips = Clips.take(args.captions, stream=args.stream, seed=args.seed, first=0)
    noise = clips.calibration_noise(args.seed)
    captions = clips.calibration_captions(args.samples, args.seed)
    samples = collect(pipeline, captions, samples=args.samples, seed=noise, **size)
    recipe = Recipe.load(args.recipe)
    dit, _ = calibrate_module(pipeline.dit, samples, recipe, method(args.method), seed=noise)
    reference = reference_run(pipeline, clips.captions, seed=clips.noise, **size)
    plan = reference.settings.plan().dense
    with Progress(plan.steps * len(reference.batches), "influence", unit="step") as bar:
        found = [influence(plan, pipeline.dit, dit, batch, bar) for batch in reference.batches]
    print(table(*(np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))))


def influence(
    plan: SamplingPlan, full: DiT, quantized: DiT, batch: Batch, bar: Progress
) -> tuple[Errors, Errors]:
    """One step by the quantized model, at the float run's latents, and all later ones by the float model.

    Returns:
        By step and clip: ||v_q - v||^2 / ||v||^2 of that step, and ||z_q - z||^2 / ||z||^2 of the last latents.
    """
    make_conditions, programs = dense_programs(plan)
    step, numbers = programs["dense"], schedule(plan)
    conditions = {
        name: make_conditions(dit, batch.prompt, batch.negative)
        for name, dit in (("full", full), ("quantized", quantized))
    }
    exact, errors, ends = batch.trajectory, [], []
    for index in range(plan.steps):
        x, _ = step(
            quantized,
            jnp.asarray(exact[index]),
            None,
            step_at(numbers, index),
            conditions["quantized"],
        )
        errors.append(_relative(np.asarray(x) - exact[index + 1], exact[index + 1] - exact[index]))
        for later in range(index + 1, plan.steps):
            x, _ = step(full, x, None, step_at(numbers, later), conditions["full"])
        ends.append(_relative(np.asarray(x) - exact[-1], exact[-1]))
        bar.advance()
    return np.stack(errors), np.stack(ends)


def table(errors: Errors, ends: Errors) -> str:
    """A line a step: its own error, what it leaves at the end, and its share of the sum of that."""
    total, rows = ends.mean(axis=1).sum(), list[Sequence[str]]()
    for number, (error, end) in enumerate(zip(errors, ends, strict=True), 1):
        share = f"{100 * end.mean() / total:.1f} %"
        rows.append(
            [str(number), f"{100 * np.sqrt(error.mean()):.1f} %", shown(estimate(end), 5), share]
        )
    return markdown(("step", "velocity error", "latent error at the end", "share"), rows)


def _relative(
    difference: Float[np.ndarray, "B C T H W"], whole: Float[np.ndarray, "B C T H W"]
) -> Float[np.ndarray, " B"]:
    axes = (1, 2, 3, 4)
    return np.square(difference).sum(axes) / np.square(whole).sum(axes)


if __name__ == "__main__":
    main()
