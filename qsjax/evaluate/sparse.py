"""Running the grid of sparse attention: sample, compare, store, row by row."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qsjax.calibration import METHODS, calibrate_module, collect
from qsjax.config import to_mapping
from qsjax.dit import DiT
from qsjax.errors import CheckpointError
from qsjax.evaluate.metrics import psnr, ssim
from qsjax.evaluate.quantization import calibration_captions, digest
from qsjax.evaluate.reference import Batch, Reference, dense_programs, reference_run
from qsjax.evaluate.results import Results
from qsjax.evaluate.sparse_grid import SparseRow
from qsjax.evaluate.tables import versions
from qsjax.pipeline import Pipeline, to_uint8
from qsjax.progress import Progress
from qsjax.quant import Recipe
from qsjax.sample import (
    Heads,
    SamplingPlan,
    SparsePlan,
    denoise,
    denoise_step,
    empty_cache,
    heads_of,
)
from qsjax.settings import KINDS, SPARSE
from qsjax.tiny import sampling
from qsjax.tiny.evaluate import HELD_OUT
from qsjax.tiny.outliers import inject

logger = logging.getLogger(__name__)

SHOWN = 2
_FIGURES = ("psnr", "ssim", "latents")


class SparseOutcome(NamedTuple):
    """One value a clip, in the captions' order.

    Attributes:
        row: the experiment.
        psnr: decibels between frames and full precision's.
        ssim: likewise.
        latents: ||z - z'||^2 / ||z'||^2 of the last latents: errors of independent causes add up in it.
        density: of attention that is computed, the mean over steps; warm-up, refreshes and text included.
        recall: attention mass on listed keys at the last refresh, the mean over layers, heads and clips; 1 of dense rows.
        dense_steps: in front.
        skipped: share of the steps that were left out, the mean over batches.
    """

    row: SparseRow
    psnr: Float[np.ndarray, " clips"]
    ssim: Float[np.ndarray, " clips"]
    latents: Float[np.ndarray, " clips"]
    density: float
    recall: float
    dense_steps: int
    skipped: float


class SparseExperiment:
    """Rows of the grid on the tiny model, in a folder; a run that was stopped goes on there.

    Args:
        pipeline: the full-precision model, float32.
        folder: holds `results.jsonl` and `videos/`.
        captions: clips of the evaluation.
        samples: of the calibration to W4A8.
        seed: of noise and calibration.
        progress: show bars.
        **settings: of the pipeline's call, for another size or number of steps.

    Raises:
        InputError: the folder holds the rows of another run.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        *,
        captions: int = 32,
        samples: int = 20,
        seed: int = 0,
        progress: bool = False,
        **settings: Any,
    ) -> None:
        self.captions = [scene.caption for scene in sampling.held_out(HELD_OUT, captions)]
        self._pipeline, self._folder, self._progress = pipeline, folder, progress
        self._samples, self._seed, self._settings = samples, seed, settings
        plain = to_mapping(pipeline.resolve(**settings))
        self.facts = {
            "model": digest(pipeline.dit),
            "captions": captions,
            "samples": samples,
            "seed": seed,
            "settings": {name: value for name, value in plain.items() if value is not None},
        }
        self._results = Results(folder, self.facts)
        self._references: dict[float, Reference] = {}
        self._models: dict[str, DiT] = {"float": pipeline.dit}

    def run(self, rows: Sequence[SparseRow]) -> list[SparseOutcome]:
        """Do the rows that are not finished, those of the same programs one after the other; return all in their order."""
        together: dict[Any, list[SparseRow]] = {}
        for row in rows:
            programs = row.weights, row.sparse and _without_numbers(row.sparse), row.skip
            together.setdefault(programs, []).append(row)
        found = {
            row.name: self._outcome(row, f"{n}/{len(rows)}")
            for n, row in enumerate(chain.from_iterable(together.values()), 1)
        }
        return [found[row.name] for row in rows]

    def videos(self, row: SparseRow | None, shift: float = 3.0) -> np.ndarray | None:
        """The first clips of a row, or of full precision at a shift, uint8; None where there are none."""
        path = self._folder / "videos" / f"{_reference(shift) if row is None else row.key}.npy"
        return np.load(path) if path.is_file() else None

    def _outcome(self, row: SparseRow, number: str) -> SparseOutcome:
        stored = self._results.get(row.key)
        if stored is None:
            stored = self._measured(row)
            self._results.add(row.key, stored)
            mean = np.mean(stored["psnr"])
            logger.info("%s %s: PSNR %.2f dB, %s s", number, row.name, mean, stored["seconds"])
        try:
            values: dict[str, Any] = {
                name: np.asarray(stored[name], np.float64) for name in _FIGURES
            }
            for name in ("density", "recall", "dense_steps", "skipped"):
                values[name] = stored[name]
            return SparseOutcome(row, **values)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self._results.path}: a row is damaged ({error})") from error

    def _measured(self, row: SparseRow) -> dict[str, Any]:
        reference, dit = self._reference(row.shift), self._model(row.weights)
        start = time.perf_counter()
        plan = replace(reference.settings.plan(), sparse=row.sparse, skip=row.skip)
        found: dict[str, list[np.ndarray]] = {name: [] for name in _FIGURES}
        shown: list[np.ndarray] = []
        skipped: list[float] = []
        heads: list[Heads] = []
        total = plan.steps * len(reference.batches)
        with Progress(total, row.name, unit="step", enabled=self._progress) as bar:
            for batch in reference.batches:
                latents, cache = sampled(plan, dit, batch, bar)
                if plan.skip is not None:
                    skipped.append(int(cache[0].skipped.count) / plan.steps)
                if plan.sparse is not None:
                    text = batch.prompt.text.shape[1]
                    slot = cache[0].slot
                    heads.append(heads_of(plan.sparse, dit.config, latents.shape, text, slot))
                frames = self._pipeline.decode(jnp.asarray(latents))
                last = batch.trajectory[-1]
                found["psnr"].append(psnr(frames, batch.frames))
                found["ssim"].append(ssim(frames, batch.frames))
                axes = tuple(range(1, last.ndim))
                error = np.square(latents - last).sum(axis=axes) / np.square(last).sum(axis=axes)
                found["latents"].append(error)
                shown.append(to_uint8(frames[:SHOWN]))
        self._keep(row.key, np.concatenate(shown)[:SHOWN])
        return {
            "row": row.name,
            **{k: [float(f"{x:.6g}") for x in np.concatenate(v)] for k, v in found.items()},
            "density": _density(plan, heads),
            "recall": round(float(np.mean([one.recall.mean() for one in heads])), 4)
            if heads
            else 1.0,
            "dense_steps": 0 if row.sparse is None else row.sparse.dense_steps,
            "skipped": round(float(np.mean(skipped)), 4) if skipped else 0.0,
            "seconds": round(time.perf_counter() - start, 1),
            "versions": versions(),
        }

    def _reference(self, shift: float) -> Reference:
        if shift not in self._references:
            settings = self._settings | {"shift": shift}
            made = reference_run(
                self._pipeline, self.captions, seed=self._seed, progress=self._progress, **settings
            )
            self._references[shift] = made
            self._keep(_reference(shift), to_uint8(made.clips(SHOWN)))
        return self._references[shift]

    def _model(self, weights: str) -> DiT:
        """Full precision or calibrated W4A8 (the whole recipe), with outlier channels or without; made when first needed."""
        if weights not in self._models:
            base, _, outliers = weights.partition(" ")
            plain = self._pipeline.dit
            loud = inject(plain) if outliers else plain
            if base == "float":
                self._models[weights] = loud
            else:
                some = calibration_captions(self._samples, avoid=self.captions)
                samples = collect(
                    self._pipeline, some, samples=self._samples, seed=self._seed, **self._settings
                )
                recipe, method = Recipe.load("w4a8"), METHODS["msad"]
                self._models[weights], _ = calibrate_module(
                    loud, samples, recipe, method, seed=self._seed, progress=self._progress
                )
        return self._models[weights]

    def _keep(self, name: str, videos: np.ndarray) -> None:
        path = self._folder / "videos" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.tmp.npy")
        np.save(temporary, videos)
        temporary.replace(path)


def _density(plan: SamplingPlan, heads: Sequence[Heads]) -> float:
    """The mean over steps; lists that change count as they were at the last refresh."""
    if not heads:
        return 1.0
    share = plan.kinds.count(SPARSE) / plan.steps
    listed = float(np.mean([one.density.mean() for one in heads]))
    return round(1 - share + share * listed, 4)


def sampled(plan: SamplingPlan, dit: DiT, batch: Batch, bar: Progress) -> tuple[np.ndarray, Any]:
    """The last latents of a batch from the reference's noise, and the cache after the last step."""
    make_conditions, _ = dense_programs(plan.dense)
    make_cache, steps = cached_programs(_static(plan))
    conditions = make_conditions(dit, batch.prompt, batch.negative)
    x = jnp.asarray(batch.trajectory[0])
    cache: Any = make_cache(dit, x, conditions) if plan.remembers else None
    for result in denoise(plan, steps, dit, x, cache, conditions):
        x, cache = result.latents, result.cache
        bar.advance()
    return np.asarray(x), cache


@lru_cache(maxsize=2)
def cached_programs(plan: SamplingPlan) -> tuple[Any, dict[str, Any]]:
    """The jitted cache and its steps; plans that differ in numbers only have the same.

    Few are kept: each holds a thousand mappings of memory on a CPU, and a process may have 65,530.
    """
    cache = jax.jit(lambda dit, x, given: empty_cache(plan, dit, x.shape, given))
    return cache, {kind: jax.jit(partial(denoise_step, plan, kind)) for kind in KINDS}


def _static(plan: SamplingPlan) -> SamplingPlan:
    """Without what reaches the steps as numbers."""
    sparse = plan.sparse and _without_numbers(plan.sparse)
    return SamplingPlan(steps=1, true_cfg=plan.true_cfg, sparse=sparse, skip=plan.skip)


def _without_numbers(sparse: SparsePlan) -> SparsePlan:
    return replace(sparse, interval=0, dense_steps=1)


def _reference(shift: float) -> str:
    return f"reference-{shift:g}"
