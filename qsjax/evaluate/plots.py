"""Pictures of comparisons: velocity error over steps, PSNR bars, contact sheets. Plots need `qsjax[plot]`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from qsjax.errors import InputError
from qsjax.evaluate.compare import Comparison
from qsjax.evaluate.statistics import estimate
from qsjax.video import check_writable, write_contact_sheet


def require_matplotlib() -> Any:
    """The class of matplotlib's figures, which needs no display; call it before the work whose result is drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'qsjax[plot]'") from None
    return Figure


def plot_velocity(results: Mapping[str, Comparison], path: Path, *, title: str = "") -> Path:
    """Velocity error over denoising steps: a line a result, the mean over clips, shaded by its standard error.

    Args:
        results: by label; at least one.
        path: PNG to write.
        title: of the picture.

    Raises:
        InputError: nothing to draw, matplotlib is missing, or a place that cannot be written.
    """
    figure, axes = figure_for(len(results), path)
    for number, (label, result) in enumerate(results.items()):
        steps = np.arange(1, len(result.velocity) + 1)
        estimates = [estimate(row) for row in 100 * result.velocity]
        mean = np.array([each.mean for each in estimates])
        error = np.array([each.error or 0.0 for each in estimates])
        color = f"C{number % 10}"
        style = ("-", "--", ":")[number // 10 % 3]
        axes.plot(steps, mean, style, color=color, label=label)
        # A logarithmic axis cannot show a band that reaches zero.
        axes.fill_between(
            steps, np.maximum(mean - error, mean / 10), mean + error, color=color, alpha=0.2
        )
    axes.set(xlabel="step", ylabel="velocity error, %", title=title)
    if any((result.velocity > 0).any() for result in results.values()):
        axes.set_yscale("log")
    axes.legend(fontsize=7)
    return save(figure, path)


def plot_psnr(results: Mapping[str, Comparison], path: Path, *, title: str = "") -> Path:
    """PSNR against full precision: a bar a result with its standard error, a dot a clip.

    Args:
        results: by label; at least one.
        path: PNG to write.
        title: of the picture.

    Raises:
        InputError: nothing to draw, matplotlib is missing, or a place that cannot be written.
    """
    return bars({label: result.psnr for label, result in results.items()}, path, title=title)


def bars(values: Mapping[str, Float[np.ndarray, " clips"]], path: Path, *, title: str = "") -> Path:
    """The same picture of any decibels by label, one value a clip."""
    figure, axes = figure_for(len(values), path)
    estimates = [estimate(clips) for clips in values.values()]
    at = np.arange(len(estimates))
    axes.barh(
        at,
        [each.mean for each in estimates],
        xerr=[each.error or 0.0 for each in estimates],
        color="0.75",
        capsize=3,
    )
    for place, clips in zip(at, values.values(), strict=True):
        axes.plot(clips, np.full(len(clips), place), ".", color="C0", markersize=3)
    axes.set(yticks=at, yticklabels=list(values), xlabel="PSNR, dB", title=title)
    axes.invert_yaxis()
    return save(figure, path)


def draw(results: Mapping[str, Comparison], stem: Path, *, title: str = "") -> list[Path]:
    """Both plots, as STEM-psnr.png and STEM-velocity.png."""
    return [
        plot_psnr(results, stem.with_name(f"{stem.name}-psnr.png"), title=title),
        plot_velocity(results, stem.with_name(f"{stem.name}-velocity.png"), title=title),
    ]


def write_sheet(videos: Mapping[str, np.ndarray], captions: Sequence[str], path: Path) -> Path:
    """A contact sheet: under each caption a row of frames a model, so that they can be compared by eye.

    Small videos are enlarged to about 128 pixels, so that captions have room.

    Args:
        videos: label -> uint8 [clips, T, H, W, 3]; full precision first.
        captions: one a clip.
        path: PNG to write.

    Raises:
        InputError: no videos, or models with unlike numbers of clips.
    """
    if not videos or any(len(clips) != len(captions) for clips in videos.values()):
        counts = ", ".join(f"{label}: {len(clips)}" for label, clips in videos.items())
        raise InputError(
            f"a sheet of {len(captions)} captions needs as many clips of every model, found {counts or 'none'}"
        )
    rows, labels = [], []
    zoom = max(1, 128 // next(iter(videos.values())).shape[3])
    for clip, caption in enumerate(captions):
        for number, (label, clips) in enumerate(videos.items()):
            rows.append(clips[clip])
            labels.append(f"{caption}: {label}" if not number else label)
    return write_contact_sheet(rows, labels, path, zoom=zoom)


def figure_for(results: int, path: Path) -> tuple[Any, Any]:
    """A figure and its axes, as high as that many results need.

    Raises:
        InputError: no results, matplotlib is missing, or a place that cannot be written.
    """
    figure_class = require_matplotlib()
    if not results:
        raise InputError(f"{path}: there is no result to draw")
    check_writable(path, overwrite=True)
    figure = figure_class(figsize=(6.4, max(3.2, 0.3 * results + 1)), layout="constrained")
    return figure, figure.add_subplot()


def save(figure: Any, path: Path) -> Path:
    """Write the PNG."""
    figure.savefig(path, dpi=110)
    return path
