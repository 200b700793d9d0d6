"""Running the rows of a grid: each is measured once, stored, and read back by every later run."""

import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, Unpack, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from qsjax.calibration import SettingsChanges
from qsjax.config import to_mapping
from qsjax.disk import replacing, writing
from qsjax.dit import DiT
from qsjax.errors import InputError
from qsjax.evaluate.mappings import forget_programs
from qsjax.evaluate.reference import Reference, reference_run
from qsjax.experiments.calibrations import Calibrations
from qsjax.experiments.clips import Clips
from qsjax.experiments.hours import Hours
from qsjax.experiments.results import Results
from qsjax.experiments.row import Row, RowT
from qsjax.pipeline import Pipeline
from qsjax.settings.calibration import SAMPLES
from qsjax.untrusted.arrays import map_array
from qsjax.video import to_uint8

logger = logging.getLogger(__name__)

SHOWN = 2
"""Clips of each row that are kept to look at."""


@runtime_checkable
class Outcome(Protocol):
    """The result of a row."""

    @property
    def row(self) -> Row:
        """The experiment."""

    @property
    def failure(self) -> str | None:
        """Why there is no result; None where there is one."""

    @property
    def duration(self) -> float:
        """Seconds that it took."""

    def headline(self) -> str:
        """The main figure for the log, or why there is none."""

    def to_record(self) -> dict[str, Any]:
        """Plain data to store."""


OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class Experiment(ABC, Generic[RowT, OutcomeT]):
    """Rows of a grid on one model, in a folder. What costs time is done when a row first needs it.

    Args:
        pipeline: the full-precision tiny model, float32.
        folder: holds `results.jsonl` and `videos/`; a run that was stopped goes on there.
        captions: clips of the evaluation.
        samples: of a calibration; each has a caption of its own.
        seed: of the calibration, unless rows have seeds of their own; without a stream of the clips' noise, too.
        stream: captions and noise of the evaluation, "choice" or "report" of `qsjax.tiny.streams`: what is chosen is chosen on the
            first, what is reported on the second. None takes those of older tables: captions of `HELD_OUT`, and the noise of `seed`.
        first_caption: without a stream, index of the first caption.
        progress: show bars.
        **settings: of the pipeline's call, for another size or number of steps.

    Attributes:
        clips: captions and noise of the evaluation.
        calibrations: of the model, by seed.
        facts: plain data that says which run this is.

    Raises:
        InputError: no captions or samples, or no such stream; the folder holds the rows of another run.
    """

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
        if samples < 1:
            raise InputError(f"{samples} samples: at least one is needed")
        self.clips = Clips.take(captions, stream=stream, seed=seed, first=first_caption)
        self._pipeline, self._folder, self._progress = pipeline, folder, progress
        self._sample_count, self._seed, self._settings = samples, seed, settings
        self.calibrations = Calibrations(
            pipeline, self.clips, samples, progress=progress, **settings
        )
        self.facts = self._facts()
        self._results = Results(folder, self.facts)
        self._references: dict[str, Reference] = {}

    def run(self, rows: Sequence[RowT]) -> list[OutcomeT]:
        """Measure the rows that are not finished, and return the outcomes of all of them, in their order.

        Raises:
            InputError: another process measures other rows in this folder.
        """
        with self._results.held(row.key for row in rows):
            return self._run(rows)

    def _run(self, rows: Sequence[RowT]) -> list[OutcomeT]:
        self._results.relabel({row.key: row.name for row in reversed(rows)})
        hours, outcomes = Hours(), {}
        order = self._order(rows)
        for number, row in enumerate(order, 1):
            stored = self._results.get(row.key) is not None
            start = time.perf_counter()
            outcome = outcomes[row.name] = self._outcome(row, f"{number}/{len(rows)}")
            seconds = outcome.duration if stored else time.perf_counter() - start
            hours.add(self._kind(row), seconds if outcome.failure is None else 0.0)
            if not stored:
                left = {one.key: self._kind(one) for one in order[number:]}
                open_rows = [kind for key, kind in left.items() if self._results.get(key) is None]
                if open_rows:
                    logger.info("%d rows and about %s left", len(open_rows), hours.left(open_rows))
        return [outcomes[row.name] for row in rows]

    def videos(self, row: Row) -> UInt8[np.ndarray, "shown F Y X 3"] | None:
        """The first clips of a row; None where none are stored."""
        return self._stored_videos(row.key)

    def reference_videos(self, row: Row) -> UInt8[np.ndarray, "shown F Y X 3"] | None:
        """The first clips of the full-precision run that a row is compared with; None where none are stored."""
        return self._stored_videos(row.reference_name)

    def reference(self, row: RowT) -> Reference:
        """The full-precision run that a row is compared with."""
        name = row.reference_name
        if name not in self._references:
            reference = reference_run(
                self._pipeline,
                self.clips.captions,
                seed=self.clips.noise,
                progress=self._progress,
                **self._reference_settings(row),
            )
            self._keep_videos(name, to_uint8(reference.clips(SHOWN)))
            self._references[name] = reference
        return self._references[name]

    @abstractmethod
    def _measure(self, row: RowT) -> OutcomeT:
        """Do a row, and keep its videos."""

    @abstractmethod
    def _restore(self, row: RowT, record: Mapping[str, Any]) -> OutcomeT:
        """The outcome that was stored as `record`.

        Raises:
            CheckpointError: the record is damaged.
        """

    def _order(self, rows: Sequence[RowT]) -> Sequence[RowT]:
        """The order in which rows are measured."""
        return rows

    def _kind(self, row: RowT) -> Hashable:
        """Rows of one kind take about as long."""
        return None

    def _reference_settings(self, row: RowT) -> SettingsChanges:
        """Settings of the full-precision run that a row is compared with."""
        return self._settings

    def _facts(self) -> dict[str, Any]:
        """Plain data that says which run this is: what all rows have in common."""
        resolved = to_mapping(self._pipeline.resolve(**self._settings))
        return {
            "model": digest(self._pipeline.dit),
            "captions": len(self.clips.scenes),
            "samples": self._sample_count,
            "seed": self._seed,
            **self.clips.facts(),
            "settings": {name: value for name, value in resolved.items() if value is not None},
        }

    def _outcome(self, row: RowT, number: str) -> OutcomeT:
        record = self._results.get(row.key)
        if record is not None:
            return self._restore(row, record)
        forget_programs()
        outcome = self._measure(row)
        self._results.add(row.key, outcome.to_record())
        level = logging.INFO if outcome.failure is None else logging.WARNING
        logger.log(level, "%s %s: %s", number, row.name, outcome.headline())
        return outcome

    def _stored_videos(self, name: str) -> UInt8[np.ndarray, "shown F Y X 3"] | None:
        path = self._video_path(name)
        return np.array(map_array(path)) if path.is_file() else None

    def _keep_videos(self, name: str, videos: UInt8[np.ndarray, "shown F Y X 3"]) -> None:
        path = self._video_path(name)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, videos)

    def _video_path(self, name: str) -> Path:
        return self._folder / "videos" / f"{name}.npy"


def digest(dit: DiT) -> str:
    """A short name of a DiT's weights: results belong to a model."""
    state = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(dit)):
        state.update(np.ascontiguousarray(leaf).tobytes())
    return state.hexdigest()[:16]
