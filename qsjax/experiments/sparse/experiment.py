"""Running the grid of sparse attention: sample, then compare with full precision and dense attention."""

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qsjax.calibration import SettingsChanges
from qsjax.dit import DiT
from qsjax.errors import CheckpointError
from qsjax.evaluate.metrics import psnr, ssim
from qsjax.experiments.experiment import SHOWN, Experiment
from qsjax.experiments.sparse.grid import SparseRow
from qsjax.experiments.sparse.sampling import sampled, without_numbers
from qsjax.pipeline import Pipeline
from qsjax.progress import Progress
from qsjax.quant import Recipe
from qsjax.sample import Heads, executed_kinds, heads_of
from qsjax.sample.state import Memory
from qsjax.settings import SPARSE
from qsjax.settings.calibration import SAMPLES
from qsjax.versions import EVALUATION, versions
from qsjax.video import to_uint8

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
        dense_steps: before the first sparse one.
        skipped: share of the steps that were left out, the mean over batches.
        seconds: of sampling and measuring.
    """

    row: SparseRow
    psnr: Float[np.ndarray, " clips"]
    ssim: Float[np.ndarray, " clips"]
    latents: Float[np.ndarray, " clips"]
    density: float
    recall: float
    dense_steps: int
    skipped: float
    seconds: float

    @property
    def failure(self) -> None:
        """A row that fails ends the run: there is no outcome of one."""

    @property
    def duration(self) -> float:
        """Of sampling and measuring."""
        return self.seconds

    def headline(self) -> str:
        """PSNR and seconds."""
        return f"PSNR {np.mean(self.psnr):.2f} dB, {self.seconds} s"

    def to_record(self) -> dict[str, Any]:
        """Plain data to store."""
        return {
            "row": self.row.name,
            **{name: getattr(self, name).tolist() for name in _FIGURES},
            "density": self.density,
            "recall": self.recall,
            "dense_steps": self.dense_steps,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "versions": versions(EVALUATION),
        }


class SparseExperiment(Experiment[SparseRow, SparseOutcome]):
    """Rows of `sparse_grid`; its arguments are those of `Experiment`."""

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        *,
        captions: int = 32,
        samples: int = SAMPLES,
        seed: int = 0,
        stream: str | None = None,
        first_caption: int = 0,
        progress: bool = False,
        **settings: Unpack[SettingsChanges],
    ) -> None:
        super().__init__(
            pipeline,
            folder,
            captions=captions,
            samples=samples,
            seed=seed,
            stream=stream,
            first_caption=first_caption,
            progress=progress,
            **settings,
        )
        self._models: dict[Hashable, DiT] = {}

    def _order(self, rows: Sequence[SparseRow]) -> Sequence[SparseRow]:
        """Rows of the same programs one after the other."""
        together: dict[Hashable, list[SparseRow]] = {}
        for row in rows:
            programs = _weights(row), row.sparse and without_numbers(row.sparse), row.skip
            together.setdefault(programs, []).append(row)
        return list(chain.from_iterable(together.values()))

    def _reference_settings(self, row: SparseRow) -> SettingsChanges:
        changes: SettingsChanges = {**self._settings, "shift": row.shift}
        if row.steps is not None:
            changes["steps"] = row.steps
        return changes

    def _restore(self, row: SparseRow, record: Mapping[str, Any]) -> SparseOutcome:
        try:
            return SparseOutcome(
                row,
                **{name: np.asarray(record[name], np.float64) for name in _FIGURES},
                density=record["density"],
                recall=record["recall"],
                dense_steps=record["dense_steps"],
                skipped=record["skipped"],
                seconds=record.get("seconds", 0.0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self._results.path}: a row is damaged ({error})") from error

    def _measure(self, row: SparseRow) -> SparseOutcome:
        reference, dit = self.reference(row), self._model(row)
        start = time.perf_counter()
        plan = replace(reference.settings.plan(), sparse=row.sparse, skip=row.skip)
        figures: dict[str, list[np.ndarray]] = {name: [] for name in _FIGURES}
        shown: list[np.ndarray] = []
        skipped: list[float] = []
        heads: list[Heads] = []
        kinds: list[str] = []
        total = plan.steps * len(reference.batches)
        with Progress(total, row.name, unit="step", enabled=self._progress) as bar:
            for batch in reference.batches:
                latents, cache = sampled(plan, dit, batch, bar)
                kinds += executed_kinds(plan, cache)
                memory = Memory() if cache is None else cache[0]
                if memory.skipped is not None:
                    skipped.append(int(memory.skipped.count) / plan.steps)
                if plan.sparse is not None:
                    text, slot = batch.prompt.text.shape[1], memory.slot
                    heads.append(heads_of(plan.sparse, dit.config, latents.shape, text, slot))
                frames = self._pipeline.decode(jnp.asarray(latents))
                last = batch.trajectory[-1]
                figures["psnr"].append(psnr(frames, batch.frames))
                figures["ssim"].append(ssim(frames, batch.frames))
                axes = tuple(range(1, last.ndim))
                error = np.square(latents - last).sum(axis=axes) / np.square(last).sum(axis=axes)
                figures["latents"].append(error)
                shown.append(to_uint8(frames[:SHOWN]))
        self._keep_videos(row.key, np.concatenate(shown)[:SHOWN])
        recall = float(np.mean([one.recall.mean() for one in heads])) if heads else 1.0
        return SparseOutcome(
            row,
            **{name: _rounded(np.concatenate(parts)) for name, parts in figures.items()},
            density=_density(kinds, heads),
            recall=round(recall, 4),
            dense_steps=0 if row.sparse is None else row.sparse.dense_steps,
            skipped=round(float(np.mean(skipped)), 4) if skipped else 0.0,
            seconds=round(time.perf_counter() - start, 1),
        )

    def _model(self, row: SparseRow) -> DiT:
        """Full precision, or W4A8 by the row's method (the whole recipe); made when first needed."""
        if row.method is None:
            return self.calibrations.float_model(row.outliers)
        if _weights(row) not in self._models:
            self._models[_weights(row)], _ = self.calibrations.quantized(
                Recipe.load("w4a8"),
                row.method,
                outliers=row.outliers,
                seed=self._seed + row.seed,
            )
        return self._models[_weights(row)]


def _weights(row: SparseRow) -> Hashable:
    """Rows of the same weights have the same of it."""
    return row.method, row.outliers, row.seed


def _density(kinds: Sequence[str], heads: Sequence[Heads]) -> float:
    """The mean over the steps of all batches; lists that change between steps count as at the last refresh."""
    if not heads:
        return 1.0
    share = kinds.count(SPARSE) / len(kinds)
    listed = float(np.mean([one.density.mean() for one in heads]))
    return round(1 - share + share * listed, 4)


def _rounded(values: Float[np.ndarray, " clips"]) -> Float[np.ndarray, " clips"]:
    """Six digits: a row that was just measured is the same as one that was read back."""
    return np.array([float(f"{value:.6g}") for value in values], np.float64)
