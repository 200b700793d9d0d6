"""Calibrations of an experiment: their samples, and the models that come of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from qsjax.calibration import (
    Method,
    Samples,
    SettingsChanges,
    Trajectories,
    calibrate_module,
    collect,
    walk,
)
from qsjax.dit import DiT
from qsjax.experiments.clips import Clips
from qsjax.experiments.row import Outliers
from qsjax.pipeline import Pipeline
from qsjax.quant import Recipe
from qsjax.tiny.outliers import inject
from qsjax.tiny.spikes import spiked

BlockReports = Sequence[Mapping[str, Any]]
"""What a calibration says of each block."""


class Calibrations:
    """Of one model, by seed; what costs time is done when it is first needed.

    Args:
        pipeline: the full-precision model.
        clips: of the experiment, whose captions no calibration has.
        count: of the samples; each has a caption of its own.
        progress: show bars.
        **settings: of the pipeline's call, for another size or number of steps.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        clips: Clips,
        count: int,
        *,
        progress: bool = False,
        **settings: Unpack[SettingsChanges],
    ) -> None:
        self._pipeline, self._clips, self._count = pipeline, clips, count
        self._progress, self._settings = progress, settings
        self._floats: dict[Outliers, DiT] = {"none": pipeline.dit}
        self._samples: dict[int, Samples] = {}
        self._runs: dict[int, Trajectories] = {}

    def float_model(self, outliers: Outliers) -> DiT:
        """Full precision; the same function with or without outliers."""
        if outliers not in self._floats:
            make = {"channels": inject, "spikes": spiked}[outliers]
            self._floats[outliers] = make(self._pipeline.dit)
        return self._floats[outliers]

    def samples(self, seed: int) -> Samples:
        """Samples of captions that no evaluation has.

        Args:
            seed: of the calibration; those of a stream share neither captions nor noise with another seed's.
        """
        if seed not in self._samples:
            self._samples[seed] = self._collect(*self._sampled(seed))
        return self._samples[seed]

    def quantized(
        self, recipe: Recipe, method: Method, *, outliers: Outliers = "none", seed: int = 0
    ) -> tuple[DiT, BlockReports]:
        """A quantized model, and the calibration's report of each block.

        Args:
            recipe: bits.
            method: how transforms, clips and integers are found.
            outliers: of the model. Its samples are those of the model without, since it is the same function.
            seed: of the calibration.
        """
        return calibrate_module(
            self.float_model(outliers),
            self.samples(seed),
            recipe,
            method,
            trajectories=self._trajectories(seed) if method.tune_steps else None,
            seed=self._clips.calibration_noise(seed),
            progress=self._progress,
        )

    def _trajectories(self, seed: int) -> Trajectories:
        """The runs of which `samples` are moments; those of one seed at a time."""
        if seed not in self._runs:
            captions, noise = self._sampled(seed)
            runs = walk(
                self._pipeline, captions, seed=noise, progress=self._progress, **self._settings
            )
            self._runs = {seed: runs}
        return self._runs[seed]

    def _sampled(self, seed: int) -> tuple[list[str], int]:
        """Captions, and the seed of their noise."""
        captions = self._clips.calibration_captions(self._count, seed)
        return captions, self._clips.calibration_noise(seed)

    def _collect(self, captions: Sequence[str], seed: int) -> Samples:
        return collect(self._pipeline, captions, samples=self._count, seed=seed, **self._settings)
