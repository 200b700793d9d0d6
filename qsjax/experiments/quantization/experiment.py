"""Running the grid of quantized models: calibrate, then compare with full precision."""

import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np

from qsjax.calibration import SettingsChanges
from qsjax.errors import QsjaxError
from qsjax.evaluate.captions import caption_scores
from qsjax.evaluate.compare import Comparison, compare
from qsjax.evaluate.perceptual import lpips
from qsjax.evaluate.reference import Reference
from qsjax.evaluate.statistics import Estimate, estimate
from qsjax.evaluate.tables import FULL, shown
from qsjax.experiments.calibrations import BlockReports
from qsjax.experiments.experiment import SHOWN, Experiment
from qsjax.experiments.quantization.grid import QuantizationRow
from qsjax.pipeline import Pipeline
from qsjax.settings.calibration import SAMPLES
from qsjax.versions import EVALUATION, versions


class QuantizationOutcome(NamedTuple):
    """What is known of a row: a comparison, or why there is none.

    Attributes:
        row: the experiment.
        comparison: with full precision.
        failure: a sentence; None where there is a comparison.
        seconds: by part of the work.
        shift: mean squared error of attention maps, the mean over blocks, and that of the same weights rounded to nearest with
            no transform; None where it was not recorded.
    """

    row: QuantizationRow
    comparison: Comparison | None
    failure: str | None
    seconds: dict[str, float]
    shift: tuple[float, float] | None = None

    @property
    def duration(self) -> float:
        """Of all parts."""
        return sum(self.seconds.values(), 0.0)

    def headline(self) -> str:
        """Velocity error, PSNR and seconds, or the failure."""
        if self.comparison is None:
            return f"failed, {self.failure}"
        error = estimate(self.comparison.velocity.mean(axis=0))
        return (
            f"velocity error {shown(error, 2, scale=100.0)} %,"
            f" PSNR {shown(estimate(self.comparison.psnr), 2)} dB, seconds {self.seconds}"
        )

    def to_record(self) -> dict[str, Any]:
        """Plain data to store."""
        if self.comparison is None:
            return {"row": self.row.name, "failure": self.failure}
        return {
            "row": self.row.name,
            "seconds": self.seconds,
            "versions": versions(EVALUATION),
            "attention_shift": self.shift,
            **self.comparison.to_mapping(),
        }


class QuantizationExperiment(Experiment[QuantizationRow, QuantizationOutcome]):
    """Rows of `quantization_grid`. One that fails is reported, and the next begins; a later run tries it again.

    Args:
        pipeline, folder, captions, samples, progress, settings: of `Experiment`.
        stream: captions and noise of the evaluation: "report", or "choice" to choose a setting.
        lpips: measure LPIPS too, which needs the extra `lpips`.

    Raises:
        InputError: as `Experiment`; LPIPS cannot be measured.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        *,
        captions: int = 32,
        samples: int = SAMPLES,
        stream: str = "report",
        lpips: bool = False,
        progress: bool = False,
        **settings: Unpack[SettingsChanges],
    ) -> None:
        self._lpips = lpips
        super().__init__(
            pipeline,
            folder,
            captions=captions,
            samples=samples,
            stream=stream,
            progress=progress,
            **settings,
        )

    def reference(self, row: QuantizationRow) -> Reference:
        """The full-precision run; how well it shows its captions is stored, too."""
        reference = super().reference(row)
        if self._results.get(FULL) is None:
            scores = caption_scores(reference.clips(len(self.clips.scenes)), self.clips.scenes)
            self._results.add(FULL, {"row": FULL, "caption_score": scores.tolist()})
        return reference

    def full_score(self) -> Estimate | None:
        """How well full precision shows the captions; None before the first row is measured."""
        record = self._results.get(FULL)
        if record is None:
            return None
        return estimate(np.asarray(record["caption_score"], np.float64))

    def _order(self, rows: Sequence[QuantizationRow]) -> Sequence[QuantizationRow]:
        """By rank, and within one the first seed of all rows before the next."""
        return sorted(rows, key=lambda row: (row.rank, row.seed))

    def _kind(self, row: QuantizationRow) -> Hashable:
        method = row.method
        return method.learns, method.rounding, method.tune_steps, method.rows == "all"

    def _facts(self) -> dict[str, Any]:
        # Rows have seeds of their own.
        more = {"lpips": True} if self._lpips else {}
        return {k: v for k, v in super()._facts().items() if k != "seed"} | more

    def _restore(self, row: QuantizationRow, record: Mapping[str, Any]) -> QuantizationOutcome:
        comparison = Comparison.from_mapping(record, source=str(self._results.path))
        shift = record.get("attention_shift")
        return QuantizationOutcome(
            row, comparison, None, record.get("seconds", {}), shift and tuple(shift)
        )

    def _measure(self, row: QuantizationRow) -> QuantizationOutcome:
        # Before the clock starts: else the first row would be charged for both.
        _, reference = self.calibrations.samples(row.seed), self.reference(row)
        seconds: dict[str, float] = {}
        try:
            start = time.perf_counter()
            dit, blocks = self.calibrations.quantized(
                row.recipe, row.method, outliers=row.outliers, seed=row.seed
            )
            seconds["calibrate"] = round(time.perf_counter() - start, 1)
            start = time.perf_counter()
            comparison = compare(
                self._pipeline,
                reference,
                dit,
                judge=self._judge,
                lpips=lpips if self._lpips else None,
                show=SHOWN,
                label=row.name,
                progress=self._progress,
            )
            seconds["compare"] = round(time.perf_counter() - start, 1)
        except QsjaxError as error:
            return QuantizationOutcome(row, None, str(error), seconds)
        assert comparison.videos is not None  # because `show` is not 0
        self._keep_videos(row.key, comparison.videos)
        return QuantizationOutcome(row, comparison, None, seconds, attention_shift(blocks))

    def _judge(self, frames: np.ndarray, first: int) -> np.ndarray:
        return caption_scores(frames, self.clips.scenes[first : first + len(frames)])


def attention_shift(blocks: BlockReports) -> tuple[float, float] | None:
    """Means over the blocks of a calibration's report: after calibration, and of rounding to nearest."""
    if not blocks:
        return None
    end, nearest = (
        float(np.mean([block[when]["shift"] for block in blocks]))
        for when in ("end", "round_to_nearest")
    )
    return end, nearest
