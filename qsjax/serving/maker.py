"""From a request to the file of a video, on the resident model."""

import secrets
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qsjax.config import nearest
from qsjax.errors import InputError
from qsjax.evaluate.metrics import SSIM_WINDOW, psnr, ssim
from qsjax.jobs import SETTINGS, Job, VideoRequest, plan_job
from qsjax.pipeline import Pipeline
from qsjax.serving.folder import VideoFolder, new_id
from qsjax.serving.limits import Limits, pixels_of
from qsjax.serving.queue import Report
from qsjax.serving.task import Outcome, Stage, Task, TaskProgress
from qsjax.settings import SamplingRecipe
from qsjax.text import EncodedPrompt
from qsjax.video import check_writable, to_uint8, write_video

_SEEDS = 2**32
"""Of those that are drawn: short enough to be typed again."""


@dataclass(frozen=True)
class VideoMaker:
    """Checks requests, in any thread, and makes their videos, in one.

    Attributes:
        pipeline: the checkpoint.
        folder: of all videos.
        limits: of a request.
        reference: a checkpoint in full precision to compare with, which may be the same one; None compares nothing.
        preview: frames of what the video will be, after every so many steps; 0 is none.
    """

    pipeline: Pipeline
    folder: VideoFolder
    limits: Limits
    reference: Pipeline | None = None
    preview: int = 0

    def __post_init__(self) -> None:
        if self.reference is not None and self.reference.weights is not None:
            raise InputError(
                f"`reference`: is in {self.reference.weights}; name a checkpoint in full precision"
            )

    @cached_property
    def recipes(self) -> tuple[str, ...]:
        """Names of the sampling recipes that are for this checkpoint."""
        weights = self.pipeline.weights
        return tuple(
            name
            for name in SamplingRecipe.presets()
            if SamplingRecipe.load(name).weights in ("", weights)
        )

    def warm(self) -> None:
        """Load the models, or as many as stay in memory, and have the map of previews at hand."""
        if self.preview:
            self.pipeline.prepare_preview()
        _ = self.pipeline.content_digest
        _ = self.pipeline.text_encoder
        if not self.pipeline.staged:
            _ = (self.pipeline.dit, self.pipeline.vae)

    def plan(self, request: VideoRequest, *, recipe: str = "", compare: bool = False) -> Task:
        """A task that can be made. Without a seed one is drawn.

        Args:
            request: what somebody asks for.
            recipe: name of a sampling recipe; "" is as the checkpoint has it.
            compare: make the same in full precision, too.

        Raises:
            InputError: what cannot be made: a name that is no recipe, a size that the model, the limits or the machine refuse,
                a folder without room, or a comparison without a reference.
        """
        if recipe and recipe not in self.recipes:
            # Only names: a path would let a stranger read files.
            raise InputError(f"no such recipe; {nearest(recipe[:200], self.recipes)}")
        name = new_id()
        seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
        job = plan_job(
            self.pipeline,
            request,
            self.folder.file(name),
            seed=seed,
            recipe_name=recipe,
            recipe=recipe or None,
        )
        self.limits.check(job.settings)
        self.pipeline.require_runnable(job.settings)
        reference = self._reference(request, job, name) if compare else None
        pixels = pixels_of(job.settings) * (1 if reference is None else 2)
        check_writable(job.out, overwrite=False, pixels=pixels)
        return Task(id=name, job=job, reference=reference, created=time.time())

    def __call__(self, task: Task, report: Report) -> Outcome:
        """Make the video of a task; its file is there when this returns, or none.

        Args:
            task: that was planned here.
            report: is told how far it is, and stops it.

        Raises:
            Stopped: it was cancelled.
            QsjaxError: it cannot be made.
        """
        begin = time.perf_counter()
        pipeline, job = self.pipeline, task.job
        if self.reference is not None and self.reference is not pipeline:
            self.reference.release()  # one model at a time
        frames = self._frames(pipeline, job, report, reference=False)
        seconds, kinds, skipped = dict(pipeline.timings), pipeline.kinds, pipeline.skipped
        full, figures = frames, dict[str, float]()
        if task.reference is not None and self.reference is not None:
            if self.reference is not pipeline:
                pipeline.release()
            full = self._frames(self.reference, task.reference, report, reference=True)
            figures = _compared(frames, full)
        report(TaskProgress(stage="writing", reference=bool(figures), step=1))
        try:
            if task.reference is not None:
                _write(full, task.reference)
            _write(frames, job)  # last: without it there is no video of this name
        except BaseException:
            self.folder.delete(task.id)
            raise
        seconds["all"] = time.perf_counter() - begin
        return Outcome(kinds=kinds, skipped=skipped, seconds=seconds, **figures)

    def _reference(self, request: VideoRequest, job: Job, name: str) -> Job:
        """The same video by the reference, with dense attention and without skipped steps."""
        if self.reference is None:
            raise InputError(
                "there is no checkpoint in full precision to compare with; name one with `reference`"
            )
        same = {name: getattr(job.settings, name) for name in SETTINGS}
        reference = plan_job(
            self.reference,
            replace(request, seed=job.made.seed, negative_prompt=job.negative, **same),
            self.folder.reference_file(name),
            sparse=False,
            skip=False,
        )
        self.reference.require_runnable(reference.settings)
        return reference

    def _frames(
        self, pipeline: Pipeline, job: Job, report: Report, *, reference: bool
    ) -> np.ndarray:
        """uint8 frames [T, H, W, 3] of a job."""
        progress = TaskProgress(reference=reference, steps=job.settings.steps)

        def stage(name: Stage) -> None:
            nonlocal progress
            progress = replace(progress, stage=name)
            report(progress)

        stage("loading")
        pipeline.timings = {}
        every = 0 if reference else self.preview
        if every:
            pipeline.prepare_preview()
        pipeline.compile_ahead(job.settings, job.made.prompt, job.negative)
        stage("encoding")
        prompt = pipeline.encode(job.made.prompt)
        negative: EncodedPrompt | None = None
        if job.negative is not None:
            negative = pipeline.text_encoder([job.negative])
        stage("denoising")
        first = None

        def step(number: int, latents: object, frames: np.ndarray | None = None) -> None:
            nonlocal progress, first
            now = time.perf_counter()
            first = (
                (number, now) if first is None else first
            )  # the first one waits for the compiler
            rate = (now - first[1]) / (number - first[0]) if number > first[0] else None
            left = None if rate is None else rate * (progress.steps - number)
            shown = progress.preview if frames is None else frames[0]
            progress = replace(progress, step=number, seconds_left=left, preview=shown)
            report(progress)

        latents = pipeline.sample(
            prompt,
            settings=job.settings,
            negative=negative,
            seed=job.made.seed,
            callback=step,
            preview=every,
        )
        stage("decoding")
        return to_uint8(pipeline.decode(latents))[0]


def _write(frames: np.ndarray, job: Job) -> None:
    comment = job.made.to_json()
    write_video(frames, job.out, fps=job.settings.fps, comment=comment, overwrite=False)


def _compared(frames: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM; a video that is too small for SSIM has none."""
    video, target = (np.divide(each[None], 255, dtype=np.float32) for each in (frames, reference))
    figures = {"psnr": float(psnr(video, target)[0])}
    if min(frames.shape[1:3]) >= SSIM_WINDOW:
        figures["ssim"] = float(ssim(video, target)[0])
    return figures
