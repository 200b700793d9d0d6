"""Running the grid of quantized models: calibrate, then compare with full precision."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qsjax.calibration import Samples, calibrate_module
from qsjax.dit import DiT
from qsjax.errors import QsjaxError
from qsjax.evaluate.compare import Comparison, compare
from qsjax.evaluate.tables import shown, summary
from qsjax.experiments.experiment import SHOWN, Experiment
from qsjax.experiments.quantization.grid import QuantizationRow
from qsjax.versions import EVALUATION, versions

BlockReports = Sequence[Mapping[str, Any]]


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

    def headline(self) -> str:
        """PSNR and seconds, or the failure."""
        if self.comparison is None:
            return f"failed, {self.failure}"
        return f"PSNR {shown(summary(self.comparison)['psnr'], 2)} dB, seconds {self.seconds}"

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
    """Rows of `quantization_grid`. One that fails is reported, and the next begins; a later run tries it again."""

    def _restore(self, row: QuantizationRow, record: Mapping[str, Any]) -> QuantizationOutcome:
        comparison = Comparison.from_mapping(record, source=str(self._results.path))
        shift = record.get("attention_shift")
        return QuantizationOutcome(
            row, comparison, None, record.get("seconds", {}), shift and tuple(shift)
        )

    def _measure(self, row: QuantizationRow) -> QuantizationOutcome:
        # Before the clock starts: else the first row would be charged for both. The samples are the same with outliers, since
        # the model with them is the same function.
        samples, reference = self.samples, self.reference(row)
        seconds: dict[str, float] = {}
        try:
            start = time.perf_counter()
            dit, blocks = self._calibrate(row, samples)
            seconds["calibrate"] = round(time.perf_counter() - start, 1)
            start = time.perf_counter()
            comparison = compare(
                self._pipeline,
                reference,
                dit,
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

    def _calibrate(self, row: QuantizationRow, samples: Samples) -> tuple[DiT, BlockReports]:
        """The row's quantized model, and the calibration's report of each block."""
        dit = self.dit_with_outliers if row.outliers else self._pipeline.dit
        return calibrate_module(
            dit, samples, row.recipe, row.method, seed=self._seed, progress=self._progress
        )


def attention_shift(blocks: BlockReports) -> tuple[float, float] | None:
    """Means over the blocks of a calibration's report: after calibration, and of rounding to nearest."""
    if not blocks:
        return None
    end, nearest = (
        float(np.mean([block[when]["shift"] for block in blocks]))
        for when in ("end", "round_to_nearest")
    )
    return end, nearest
