"""The three stages, each for all jobs before the next: encode, denoise, decode."""

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import jax
import numpy as np

from pallas_kernels import UnsupportedError
from qsjax.disk import DiskError, require_room
from qsjax.errors import QsjaxError
from qsjax.jobs.listing import Refused
from qsjax.jobs.planning import Job, is_there
from qsjax.jobs.work import FOLDER, Work
from qsjax.locks import lock
from qsjax.pipeline import Pipeline
from qsjax.preview import PreviewSheet
from qsjax.progress import Progress
from qsjax.video import least_bytes, to_uint8, write_video

logger = logging.getLogger(__name__)

_FAILURES = (QsjaxError, UnsupportedError, jax.errors.JaxRuntimeError)
"""What ends one job and not the others; the last is a device's word, as for too little memory."""


@dataclass(frozen=True)
class Done:
    """What came of the jobs.

    Attributes:
        written: videos that this call has made, in their order, and the seconds of each, by stage.
        there: those that were there, made by the same settings.
        failed: those of which there is none, and why.
    """

    written: dict[int, dict[str, float]] = field(default_factory=dict)
    there: list[int] = field(default_factory=list)
    failed: list[Refused] = field(default_factory=list)


def sample_jobs(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    folder: Path,
    *,
    overwrite: bool = False,
    preview: int = 0,
    progress: bool = True,
    failed: Callable[[Refused], None] = lambda refused: None,
) -> Done:
    """Make the videos of jobs. The same call after an interruption goes on where it stopped.

    With `staged=True` the pipeline holds one model at a time, and loads each once. Another process that does the same waits.

    Args:
        pipeline: that planned the jobs.
        jobs: the jobs.
        folder: of all videos.
        overwrite: replace files of the jobs' names that were made otherwise.
        preview: every so many steps, a picture beside the video to be (`qsjax.preview.PreviewSheet`); 0 is none.
        progress: show a bar a stage.
        failed: called with every job that fails, at once.

    Raises:
        InputError: the folder cannot be written or has no room, or another process makes other videos there.
    """
    if not jobs:
        return Done()
    names = repr([(str(job.out), job.made.identity) for job in jobs])
    identity = hashlib.sha256(names.encode()).hexdigest()
    work = Work(folder / FOLDER)
    with lock(work.folder, doing="sample", identity=identity):
        return _Stages(pipeline, work, preview, progress, failed).run(jobs, overwrite)


class _Stages:
    def __init__(
        self,
        pipeline: Pipeline,
        work: Work,
        preview: int,
        progress: bool,
        failed: Callable[[Refused], None],
    ) -> None:
        self._pipeline, self._work = pipeline, work
        self._preview, self._progress = preview, progress
        self._say_failed, self._done = failed, Done()
        self._seconds: dict[int, dict[str, float]] = {}
        self._failed: set[int] = set()

    def run(self, jobs: Sequence[Job], overwrite: bool) -> Done:
        self._work.make()
        left = []
        for job in jobs:
            with self._of(job):
                if is_there(job, overwrite=overwrite):
                    self._done.there.append(job.line)
                else:
                    left.append(job)
        undenoised = [job for job in left if not self._work.latents(job).exists()]
        self._require_room(left, undenoised)
        if undenoised and self._preview:
            self._pipeline.prepare_preview()
        for first in undenoised[:1]:
            self._pipeline.compile_ahead(first.settings, first.made.prompt, first.negative)
        for label, unit, stage, wanted in (
            ("encode", "prompt", self._encode, undenoised),
            ("denoise", "clip", self._denoise, undenoised),
            ("decode", "clip", self._decode, left),
        ):
            self._stage(label, unit, stage, [job for job in wanted if job.line not in self._failed], len(left))  # fmt: skip
        failed = [job for job in jobs if job.line in self._failed]
        self._work.keep({path for job in failed for path in self._work.files(job)})
        return self._done

    def _require_room(self, left: Sequence[Job], undenoised: Sequence[Job]) -> None:
        """Latents of all clips lie on the disk until they are decoded."""
        sizes = [job.settings.frames * job.settings.height * job.settings.width for job in left]
        shapes = [self._pipeline.latent_shape(job.settings) for job in undenoised]
        latents = sum(map(prod, shapes)) * np.dtype(np.float32).itemsize
        require_room(self._work.folder.parent, sum(map(least_bytes, sizes)) + latents)

    def _stage(
        self, label: str, unit: str, stage: Callable[[Job], None], jobs: Sequence[Job], total: int
    ) -> None:
        bar = Progress(
            total,
            f"{label} all",
            unit=unit,
            initial=total - len(jobs),
            enabled=self._progress and len(jobs) > 0,
        )
        with bar:
            for job in jobs:
                start = time.perf_counter()
                with self._of(job):
                    stage(job)
                seconds = self._seconds.setdefault(job.line, {})
                seconds[label] = time.perf_counter() - start
                bar.advance(1, line=job.line)

    def _encode(self, job: Job) -> None:
        for text in self._work.texts(job):
            if not self._work.encoding(job, text).exists():
                self._work.save_encoding(job, text, self._pipeline.text_encoder([text]))

    def _denoise(self, job: Job) -> None:
        prompt, *negative = (self._work.load_encoding(job, text) for text in self._work.texts(job))
        latents = self._pipeline.sample(
            prompt,
            settings=job.settings,
            negative=negative[0] if negative else None,
            seed=job.made.seed,
            callback=PreviewSheet(job.out, job.settings.steps),
            preview=self._preview,
        )
        self._work.save_latents(job, np.asarray(latents))

    def _decode(self, job: Job) -> None:
        latents = self._work.load_latents(job, self._pipeline.latent_shape(job.settings))
        (video,) = to_uint8(self._pipeline.decode(latents))
        write_video(video, job.out, fps=job.settings.fps, comment=job.made.to_json())
        self._done.written[job.line] = self._seconds.setdefault(job.line, {})
        self._work.latents(job).unlink(missing_ok=True)
        logger.info("wrote %s", job.out)

    @contextmanager
    def _of(self, job: Job) -> Generator[None, None, None]:
        """What fails here is this job alone, but for a full disk, which has no room for the others either."""
        try:
            yield
        except _FAILURES as error:
            if isinstance(error, DiskError) and error.is_full:
                raise
            refused = Refused(job.line, str(error).splitlines()[0] if str(error) else type(error).__name__)  # fmt: skip
            self._failed.add(job.line)
            self._done.failed.append(refused)
            self._say_failed(refused)
