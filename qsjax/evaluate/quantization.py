"""Running the grid: calibrate, compare, store, row by row; then tables, sheets and plots of what there is."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from qsjax.calibration import Method, Samples, calibrate_module, collect
from qsjax.config import to_mapping
from qsjax.dit import DiT
from qsjax.errors import InputError, QsjaxError
from qsjax.evaluate.compare import Comparison, compare
from qsjax.evaluate.grid import Row
from qsjax.evaluate.mappings import forget_programs
from qsjax.evaluate.reference import Reference, reference_run
from qsjax.evaluate.results import Results
from qsjax.evaluate.tables import shown, summary, versions
from qsjax.pipeline import Pipeline, to_uint8
from qsjax.quant import Recipe
from qsjax.tiny import sampling
from qsjax.tiny.evaluate import HELD_OUT
from qsjax.tiny.outliers import inject

logger = logging.getLogger(__name__)

CALIBRATION = 98
"""Seed of the stream of scenes whose captions calibrate; those that the evaluation has too are left out."""
SHOWN = 2
"""Clips of each row that are kept to look at."""

Calibrate = Callable[[DiT, Samples, Recipe, Method], tuple[DiT, Sequence[Mapping[str, Any]]]]
Collect = Callable[[Pipeline, Sequence[str], int, int], Samples]


class Outcome(NamedTuple):
    """What is known of a row: a comparison, or why there is none.

    Attributes:
        row: the experiment.
        comparison: with full precision.
        failure: a sentence; None where there is a comparison.
        seconds: by part of the work.
        shift: mean squared error of attention maps, the mean over blocks, and that of the same weights rounded to nearest with
            no transform; None where it was not recorded.
    """

    row: Row
    comparison: Comparison | None
    failure: str | None
    seconds: dict[str, float]
    shift: tuple[float, float] | None = None


class Experiment:
    """Rows of a grid on one model, in a folder. What costs time is done when a row first needs it.

    Args:
        pipeline: the full-precision tiny model, float32.
        folder: holds `results.jsonl` and `videos/`; a run that was stopped goes on there.
        captions: clips of the evaluation.
        samples: of the calibration; each has a caption of its own.
        seed: of noise, calibration samples and their order.
        progress: show bars.
        calibrate, collect: stand-ins for those of `qsjax.calibration`.
        **settings: of the pipeline's call, for another size or number of steps.

    Attributes:
        captions: of the evaluation.
        facts: plain data that says which run this is.

    Raises:
        InputError: no captions or samples; the folder holds the rows of another run.
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
        calibrate: Calibrate | None = None,
        collect: Collect | None = None,
        **settings: Any,
    ) -> None:
        if captions < 1 or samples < 1:
            raise InputError(
                f"{captions} captions, {samples} samples: at least one of each is needed"
            )
        self.captions = [scene.caption for scene in sampling.held_out(HELD_OUT, captions)]
        self._pipeline, self._folder, self._progress = pipeline, folder, progress
        self._samples_wanted, self._seed, self._settings = samples, seed, settings
        self._calibrate = calibrate or self._calibrate_module
        self._collect = collect or self._collect_samples
        self.facts = {
            "model": digest(pipeline.dit),
            "captions": captions,
            "samples": samples,
            "seed": seed,
            "settings": {
                name: value
                for name, value in to_mapping(pipeline.resolve(**settings)).items()
                if value is not None
            },
        }
        self._results = Results(folder, self.facts)

    def run(self, rows: Sequence[Row]) -> list[Outcome]:
        """Do the rows that are not finished, and return all of them; one that fails is reported and the next begins."""
        return [self._outcome(row, f"{n}/{len(rows)}") for n, row in enumerate(rows, 1)]

    def videos(self, row: Row | None = None) -> np.ndarray | None:
        """The first clips of a row, or of full precision, uint8 [clips, T, H, W, 3]; None where there are none."""
        path = self._video_path("reference" if row is None else row.key)
        return np.load(path) if path.is_file() else None

    @cached_property
    def reference(self) -> Reference:
        """The full-precision run."""
        made = reference_run(
            self._pipeline,
            self.captions,
            seed=self._seed,
            progress=self._progress,
            **self._settings,
        )
        self._keep_videos("reference", to_uint8(made.clips(SHOWN)))
        return made

    @cached_property
    def samples(self) -> Samples:
        """Calibration samples of captions that the evaluation does not have."""
        some = calibration_captions(self._samples_wanted, avoid=self.captions)
        return self._collect(self._pipeline, some, self._samples_wanted, self._seed)

    @cached_property
    def loud(self) -> DiT:
        """The same function with outlier channels."""
        return inject(self._pipeline.dit)

    def _outcome(self, row: Row, number: str) -> Outcome:
        stored = self._results.get(row.key)
        if stored is not None:
            source = str(self._results.path)
            comparison = Comparison.from_mapping(stored, source=source)
            shift = stored.get("attention_shift")
            return Outcome(row, comparison, None, stored.get("seconds", {}), shift and tuple(shift))
        forget_programs()
        # Both are made by the first row; their time is not its own. Samples are the plain model's: the loud one is the
        # same function.
        samples, reference = self.samples, self.reference
        seconds: dict[str, float] = {}
        try:
            start = time.perf_counter()
            dit = self.loud if row.outliers else self._pipeline.dit
            quantized, blocks = self._calibrate(dit, samples, row.recipe, row.method)
            seconds["calibrate"] = round(time.perf_counter() - start, 1)
            start = time.perf_counter()
            found = compare(
                self._pipeline,
                reference,
                quantized,
                show=SHOWN,
                label=row.name,
                progress=self._progress,
            )
            seconds["compare"] = round(time.perf_counter() - start, 1)
        except QsjaxError as error:
            logger.warning("%s %s: failed, %s", number, row.name, error)
            self._results.add(row.key, {"row": row.name, "failure": str(error)})
            return Outcome(row, None, str(error), seconds)
        assert found.videos is not None
        self._keep_videos(row.key, found.videos)
        shift = attention_shift(blocks)
        facts = {
            "row": row.name,
            "seconds": seconds,
            "versions": versions(),
            "attention_shift": shift,
        }
        self._results.add(row.key, facts | found.to_mapping())
        psnr = shown(summary(found)["psnr"], 2)
        logger.info("%s %s: PSNR %s dB, seconds %s", number, row.name, psnr, seconds)
        return Outcome(row, found, None, seconds, shift)

    def _collect_samples(
        self, pipeline: Pipeline, captions: Sequence[str], samples: int, seed: int
    ) -> Samples:
        return collect(pipeline, captions, samples=samples, seed=seed, **self._settings)

    def _calibrate_module(
        self, dit: DiT, samples: Samples, recipe: Recipe, method: Method
    ) -> tuple[DiT, Sequence[Mapping[str, Any]]]:
        return calibrate_module(
            dit, samples, recipe, method, seed=self._seed, progress=self._progress
        )

    def _video_path(self, name: str) -> Path:
        return self._folder / "videos" / f"{name}.npy"

    def _keep_videos(self, name: str, videos: np.ndarray) -> None:
        path = self._video_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.tmp.npy")
        np.save(temporary, videos)
        temporary.replace(path)


def attention_shift(blocks: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Means over the blocks of a calibration's report: of what was made, and of rounding to nearest."""
    if not blocks:
        return None
    made, nearest = (
        float(np.mean([block[when]["shift"] for block in blocks]))
        for when in ("end", "round_to_nearest")
    )
    return made, nearest


def calibration_captions(count: int, *, avoid: Sequence[str]) -> list[str]:
    """Captions of the calibration's stream, none of them among those to avoid and none twice."""
    found: dict[str, None] = {}
    length = count
    while len(found) < count:
        stream = (scene.caption for scene in sampling.held_out(CALIBRATION, length))
        found = dict.fromkeys(caption for caption in stream if caption not in avoid)
        length *= 2
    return list(found)[:count]


def groups(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, list[Outcome]]]:
    """Outcomes by table, in the grid's order."""
    for name, some in groupby(outcomes, key=lambda outcome: outcome.row.group):
        yield name, list(some)


def digest(dit: DiT) -> str:
    """A short name of a DiT's weights: results belong to a model."""
    state = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(dit)):
        state.update(np.ascontiguousarray(leaf).tobytes())
    return state.hexdigest()[:16]
