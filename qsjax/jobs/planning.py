"""From requests to jobs: settings that are checked, places that can be written, and what is there already."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qsjax.errors import CheckpointError, InputError, QsjaxError
from qsjax.jobs.listing import Refused, Request, place_of
from qsjax.jobs.request import VideoRequest
from qsjax.pipeline import Pipeline
from qsjax.prompting import require_unicode, require_use
from qsjax.provenance import Provenance, read_provenance
from qsjax.settings import Settings
from qsjax.untrusted import inside
from qsjax.video import check_writable


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video that can be made.

    Attributes:
        line: of the file.
        out: its file.
        made: prompt, seed and settings, and what else its file will say.
        negative: the negative prompt; None where none is used.
    """

    line: int
    out: Path
    made: Provenance
    negative: str | None

    @property
    def settings(self) -> Settings:
        """Of the run."""
        return self.made.settings


def plan_jobs(
    pipeline: Pipeline,
    requests: Mapping[int, Request],
    folder: Path,
    *,
    seed: int = 0,
    negative_prompt: str | None = None,
    recipe_name: str = "",
    **arguments: Any,
) -> tuple[list[Job], list[Refused]]:
    """The jobs of requests, and those lines that the model cannot serve. Nothing is written.

    Args:
        pipeline: the checkpoint.
        requests: by line.
        folder: of all videos.
        seed, negative_prompt: of requests without their own.
        recipe_name: of the sampling recipe, for the videos' files.
        **arguments: of `Pipeline.resolve`, for requests without their own.
    """
    jobs: list[Job] = []
    refused: list[Refused] = []
    runnable: set[Settings] = set()
    for line, request in requests.items():
        try:
            job = plan_job(
                pipeline,
                request,
                _inside(folder, place_of(line, request)),
                line=line,
                seed=seed,
                negative_prompt=negative_prompt,
                recipe_name=recipe_name,
                **arguments,
            )
            if job.settings not in runnable:
                pipeline.require_runnable(job.settings)
                runnable.add(job.settings)
            jobs.append(job)
        except QsjaxError as error:
            refused.append(Refused(line, str(error)))
    return jobs, refused


def plan_job(
    pipeline: Pipeline,
    request: VideoRequest,
    out: Path,
    *,
    line: int = 1,
    seed: int = 0,
    negative_prompt: str | None = None,
    recipe_name: str = "",
    **arguments: Any,
) -> Job:
    """The job of one request. Whether the machine can run it is not asked (`Pipeline.require_runnable`).

    Args:
        pipeline: the checkpoint.
        request: what is asked for.
        out: its file.
        line: of a file of requests.
        seed, negative_prompt: where the request has none.
        recipe_name: of the sampling recipe, for the video's file.
        **arguments: of `Pipeline.resolve`, where the request has none.

    Raises:
        InputError: settings that the model cannot serve, a prompt that is no Unicode, or a negative one that is not used.
    """
    settings = pipeline.resolve(**{**arguments, **request.settings})
    negative = request.negative_prompt
    negative = negative_prompt if negative is None else negative
    if negative:
        require_use(settings)
    if settings.uses_negative:
        settings = replace(settings, negative_prompt=settings.negative_prompt if negative is None else negative)  # fmt: skip
    require_unicode(request.prompt + settings.negative_prompt)
    return Job(
        line=line,
        out=out,
        made=pipeline.provenance(
            request.prompt,
            settings,
            seed=seed if request.seed is None else request.seed,
            recipe=recipe_name,
        ),
        negative=settings.negative_prompt if settings.uses_negative else None,
    )


def is_there(job: Job, *, overwrite: bool) -> bool:
    """Whether a job's video has been made; else its place can be written.

    Args:
        job: the job.
        overwrite: another video may have its name.

    Raises:
        InputError: another file has its name and may not be replaced, or the place cannot be written.
    """
    try:
        if read_provenance(job.out).identity == job.made.identity:
            return True
    except InputError:
        pass  # there is no file, or one that says nothing
    check_writable(job.out, overwrite=overwrite)
    return False


def _inside(folder: Path, place: str) -> Path:
    try:
        return inside(folder, place, "it")
    except CheckpointError as error:
        raise InputError(
            f"{folder / place}: a part of it is a link, which may lead anywhere; name another file"
        ) from error
