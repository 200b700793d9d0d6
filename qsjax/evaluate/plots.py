"""Pictures of comparisons: velocity error over steps, bars of velocity error and PSNR, contact sheets. Plots need the extra `plot`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from qsjax.address import install
from qsjax.disk import replacing
from qsjax.errors import InputError
from qsjax.evaluate.repeats import Repeats
from qsjax.evaluate.statistics import Estimate, estimate_over_seeds
from qsjax.video import check_writable, write_contact_sheet


def require_matplotlib() -> Any:
    """The class of matplotlib's figures, which needs no display; call it before the work whose result is drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(f"plots need matplotlib: {install('plot')}") from None
    return Figure


def plot_velocity(results: Mapping[str, Repeats], path: Path, *, title: str = "") -> Path:
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
        velocity = np.stack([one.velocity for one in result.by_seed.values()])
        steps = np.arange(1, velocity.shape[1] + 1)
        estimates = [estimate_over_seeds(100 * velocity[:, step - 1]) for step in steps]
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
    if any((one.velocity > 0).any() for each in results.values() for one in each.by_seed.values()):
        axes.set_yscale("log")
    axes.legend(fontsize=7)
    return save(figure, path)


def plot_figures(results: Mapping[str, Repeats], path: Path, *, title: str = "") -> Path:
    """Velocity error and, beside it, PSNR: a bar a result with its standard error, a dot a clip (the mean over seeds).

    Args:
        results: by label; at least one.
        path: PNG to write.
        title: of the picture.

    Raises:
        InputError: nothing to draw, matplotlib is missing, or a place that cannot be written.
    """
    figure, left = figure_for(len(results), path, panels=2)
    right = figure.axes[1]
    for axes, name, scale in ((left, "velocity", 100.0), (right, "psnr", 1.0)):
        values = [
            scale * array for each in results.values() if (array := each.values(name)) is not None
        ]
        _draw_bars(axes, [estimate_over_seeds(one) for one in values], [x.mean(0) for x in values])
    left.set(yticks=np.arange(len(results)), yticklabels=list(results), xlabel="velocity error, %")
    left.invert_yaxis()
    right.sharey(left)
    right.tick_params(labelleft=False)
    right.set(xlabel="PSNR, dB")
    figure.suptitle(title)
    return save(figure, path)


def bars(
    values: Mapping[str, Float[np.ndarray, "_ clips"]], path: Path, *, title: str = ""
) -> Path:
    """Decibels by label, one value a calibration and clip: a bar with its standard error, a dot a clip."""
    figure, axes = figure_for(len(values), path)
    estimates = [estimate_over_seeds(clips) for clips in values.values()]
    _draw_bars(axes, estimates, [x.mean(0) for x in values.values()])
    axes.set(
        yticks=np.arange(len(values)), yticklabels=list(values), xlabel="PSNR, dB", title=title
    )
    axes.invert_yaxis()
    return save(figure, path)


def _draw_bars(axes: Any, estimates: Sequence[Estimate], clips: Sequence[np.ndarray]) -> None:
    at = np.arange(len(estimates))
    axes.barh(
        at,
        [each.mean for each in estimates],
        xerr=[each.error or 0.0 for each in estimates],
        color="0.75",
        capsize=3,
    )
    for place, dots in zip(at, clips, strict=True):
        axes.plot(dots, np.full(len(dots), place), ".", color="C0", markersize=3)


def draw(results: Mapping[str, Repeats], stem: Path, *, title: str = "") -> list[Path]:
    """Both plots, as STEM-figures.png and STEM-velocity.png."""
    return [
        plot_figures(results, stem.with_name(f"{stem.name}-figures.png"), title=title),
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


def figure_for(results: int, path: Path, *, panels: int = 1) -> tuple[Any, Any]:
    """A figure and its first axes, as high as that many results need; panels stand side by side.

    Raises:
        InputError: no results, matplotlib is missing, or a place that cannot be written.
    """
    figure_class = require_matplotlib()
    if not results:
        raise InputError(f"{path}: there is no result to draw")
    check_writable(path, overwrite=True)
    size = (6.4 if panels == 1 else 9.6, max(3.2, 0.3 * results + 1))
    figure = figure_class(figsize=size, layout="constrained")
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    return figure, axes[0]


def save(figure: Any, path: Path) -> Path:
    """Write the PNG.

    Raises:
        InputError: a place that cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path
