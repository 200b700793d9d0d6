"""What the page shows, as HTML. All text from outside is escaped here."""

import base64
import io
from collections.abc import Sequence
from html import escape as _escaped

import numpy as np
from jaxtyping import UInt8

from qsjax.serving import Outcome, Task, VideoRecord
from qsjax.settings import ADAPTIVE, DENSE, REFRESH, SPARSE, Settings

_STAGES = {
    "loading": "Loading the model",
    "encoding": "Reading the prompt",
    "denoising": "Denoising",
    "decoding": "Decoding the frames",
    "writing": "Writing the file",
}
_KINDS = {
    DENSE: "full attention",
    REFRESH: "refresh of the cache",
    SPARSE: "sparse attention",
    ADAPTIVE: "refresh or sparse, as the error demands",
}
_PREVIEW_SECONDS = 2.0
"""Of one turn of an animated preview."""
_SMALL = 160
"""Pixels; videos of fewer are enlarged pixel by pixel."""


def escape(text: str) -> str:
    """Text from outside, so that it stays text; what is no Unicode becomes a question mark."""
    return _escaped(text.encode("utf-8", "replace").decode())


def empty(loading: bool) -> str:
    """The place of a video, before the first one."""
    hint = "The model is being loaded; you can ask already." if loading else "It appears here."
    return f'<div class="qs-empty"><p>Describe a video and press <b>Generate</b>.</p><p>{hint}</p></div>'


def refusal(sentence: str) -> str:
    """Why a request was not taken; nothing without a sentence."""
    return f'<p class="qs-error" role="alert">{escape(sentence)}</p>' if sentence else ""


def running(task: Task, preview: str = "") -> str:
    """A task that waits or runs: what is done, steps by kind, the latest preview.

    Args:
        task: the task.
        preview: URL of a picture of what the video will be; "" before the first.
    """
    progress = task.progress
    of = task.job.settings if not progress.reference or task.reference is None else task.reference.settings  # fmt: skip
    stage = "Waiting" if task.state == "queued" else _STAGES[progress.stage]
    details = []
    if progress.stage == "denoising":
        details.append(f"step {progress.step} of {progress.steps}")
        if progress.seconds_left is not None:
            details.append(f"{_duration(progress.seconds_left)} left")
    if task.reference is not None:
        details.append("in full precision" if progress.reference else "first of two")
    return (
        '<section class="qs-run" aria-live="polite">'
        f'<p class="qs-stage"><b>{stage}</b><span>{escape(" · ".join(details))}</span></p>'
        f'<div class="qs-bar" role="progressbar" aria-valuenow="{task.percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<i style="width:{task.percent}%"></i></div>'
        f"{_preview(preview, of)}{kinds(of.kinds, progress.step)}{_never_sparse(of)}"
        f'<p class="qs-prompt">{escape(task.job.made.prompt)}</p></section>'
    )


def ended(task: Task) -> str:
    """A task of which there is no video: cancelled, or failed and why; nothing for others."""
    if task.state == "cancelled":
        return '<p class="qs-note">Cancelled. Nothing was written.</p>'
    return refusal(task.error)


def result(record: VideoRecord, outcome: Outcome | None) -> str:
    """A video that is there, beside the one in full precision if there is one.

    Args:
        record: its file.
        outcome: what is known of its making, if this process made it.
    """
    made = record.made
    pair = record.reference is not None
    videos = _figure(record.id, made.settings, _precision(record) if pair else "")
    if pair:
        videos += _figure(f"{record.id}.full-precision", made.settings, "full precision")
    figures, seconds, executed = "", "", made.settings.kinds
    if outcome is not None:
        executed = outcome.kinds
        seconds = f" · made in {_duration(outcome.seconds['all'])}"
        if outcome.psnr is not None:
            figures = f'<p class="qs-figures"><b>{outcome.psnr:.1f} dB</b> PSNR'
            figures += "" if outcome.ssim is None else f" · <b>{outcome.ssim:.3f}</b> SSIM"
            figures += " against full precision</p>"
    return (
        f'<section class="qs-result"><div class="qs-videos{" qs-pair" if pair else ""}">{videos}</div>{figures}'
        f'<p class="qs-prompt">{escape(made.prompt)}</p>'
        f'<p class="qs-meta">{_settings(record)}{seconds} · '
        f'<a href="videos/{record.id}.mp4" download>download</a></p>{kinds(executed, len(executed))}{_never_sparse(made.settings)}</section>'
    )


def history(records: Sequence[VideoRecord], chosen: str) -> str:
    """Cards of finished videos; the page's script says which one was clicked.

    Args:
        records: the newest first.
        chosen: id of the one that is shown large.
    """
    if not records:
        return '<p class="qs-note">No videos yet.</p>'
    cards = "".join(
        f'<article class="qs-card{" qs-chosen" if record.id == chosen else ""}">'
        f'<button class="qs-show" data-id="{record.id}" data-action="show" aria-label="Show this video">'
        f'<video src="videos/{record.id}.mp4#t=0.4" preload="metadata" muted loop playsinline{_pixels(record.made.settings)}></video>'
        f'</button><p title="{escape(record.made.prompt[:400])}">{escape(record.made.prompt[:120])}</p>'
        f'<button class="qs-again" data-id="{record.id}" data-action="again">Use these settings</button></article>'
        for record in records
    )
    return f'<div class="qs-history">{cards}</div>'


def kinds(of: Sequence[str], done: int) -> str:
    """A cell for every step, in the colour of its kind; those that are not done are pale.

    Args:
        of: kind of every step.
        done: steps that are done.
    """
    present = dict.fromkeys(of)
    cells = "".join(
        f'<i class="qs-{kind}{"" if number < done else " qs-later"}"></i>'
        for number, kind in enumerate(of)
    )
    legend = "".join(
        f'<span><i class="qs-{kind}"></i>{of.count(kind)} {_KINDS[kind]}</span>' for kind in present
    )
    return f'<div class="qs-kinds" aria-hidden="true">{cells}</div><p class="qs-legend">Steps: {legend}</p>'


def animated(frames: UInt8[np.ndarray, "T h w 3"]) -> str:
    """Frames as an animated picture inside a URL."""
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    pause = int(1000 * _PREVIEW_SECONDS / len(frames))
    first.save(file, "WEBP", save_all=True, append_images=others, duration=pause, loop=0, quality=80)  # fmt: skip
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _never_sparse(settings: Settings) -> str:
    if not settings.never_sparse:
        return ""
    return '<p class="qs-note">All steps have full attention: give more steps, or take a recipe for few of them.</p>'


def _preview(source: str, settings: Settings) -> str:
    shape = f"aspect-ratio:{settings.width}/{settings.height}"
    if not source:
        return f'<div class="qs-preview qs-blank" style="{shape}"></div>'
    return f'<img class="qs-preview" style="{shape}" alt="What the video will be" src="{source}">'


def _figure(name: str, settings: Settings, caption: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><video src="videos/{name}.mp4" controls autoplay loop muted playsinline'
        f' width="{settings.width}" height="{settings.height}"{_pixels(settings)}></video>{below}</figure>'
    )


def _pixels(settings: Settings) -> str:
    return ' class="qs-pixels"' if settings.width < _SMALL else ""


def _settings(record: VideoRecord) -> str:
    made, settings = record.made, record.made.settings
    parts = [
        f"{settings.frames} frames of {settings.width} x {settings.height}",
        f"{settings.steps} steps",
        f"seed {made.seed}",
        *([made.recipe] if made.recipe else []),
        made.model,
    ]
    return escape(" · ".join(filter(None, parts)))


def _precision(record: VideoRecord) -> str:
    return record.made.recipe or record.made.model or "this model"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
