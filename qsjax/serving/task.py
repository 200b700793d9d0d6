"""A task: one video that was asked for, and what has become of it so far. Immutable, so that any thread may read one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from qsjax.jobs import Job

State = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
FINISHED: tuple[State, ...] = ("completed", "failed", "cancelled")
Stage = Literal["loading", "encoding", "denoising", "decoding", "writing"]
"""What is being done; models are loaded where they are first needed, also inside a stage."""


class Stopped(Exception):
    """Raised inside a task's work when somebody has cancelled it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskProgress:
    """How far a task is.

    Attributes:
        stage: what is being done.
        reference: it is done for the video in full precision.
        step: steps that are done, of the video that is being sampled.
        steps: of that video.
        seconds_left: of the steps that are left, at the rate of those that are done; None if there is none yet.
        preview: frames of what the video will be, uint8 [T, h, w, 3]; None before the first.
    """

    stage: Stage = "loading"
    reference: bool = False
    step: int = 0
    steps: int = 1
    seconds_left: float | None = None
    preview: UInt8[np.ndarray, "T h w 3"] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task.

    Attributes:
        kinds: kind of every step, as it was executed.
        skipped: steps that were left out for the prompt.
        seconds: by stage.
        psnr, ssim: against the video in full precision, decibels and a share of 1; None without one.
    """

    kinds: tuple[str, ...]
    skipped: int
    seconds: Mapping[str, float]
    psnr: float | None = None
    ssim: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """One video of a queue.

    Attributes:
        id: its name; that of its file too.
        job: prompt, settings and file.
        reference: the same in full precision, to compare; None if that was not asked for.
        created: Unix time when it was asked for, seconds.
        state: queued, in_progress, completed, failed or cancelled.
        progress: of a task in progress, and where a finished one ended.
        started, finished: Unix times; None before.
        error: why it failed, one sentence.
        outcome: of a completed task.
    """

    id: str
    job: Job
    reference: Job | None = None
    created: float
    state: State = "queued"
    progress: TaskProgress = field(default_factory=TaskProgress)
    started: float | None = None
    finished: float | None = None
    error: str = ""
    outcome: Outcome | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINISHED

    @property
    def path(self) -> Path:
        """The video's file, which is there when the task is completed."""
        return self.job.out

    @property
    def percent(self) -> int:
        """Share of all steps that are done, 0 to 99 before it is completed."""
        if self.state == "completed":
            return 100
        videos = 1 if self.reference is None else 2
        done = self.progress.reference + self.progress.step / self.progress.steps
        return min(99, int(100 * done / videos)) if self.started is not None else 0
