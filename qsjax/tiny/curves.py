"""`python -m qsjax.tiny.curves`: a picture of a training run, from the logs of its stages. Needs the extra `plot`."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.address import install
from qsjax.disk import replacing
from qsjax.errors import InputError, QsjaxError, on_command_line
from qsjax.tiny.training import loop
from qsjax.video import check_writable

# Stage -> (figure in its log, label of the axis).
_STAGES = {
    "decoder": ("decibel", "crop PSNR, dB"),
    "encoder": ("decibel", "latents, dB"),
    "dit": ("loss", "flow loss"),
    "distil": ("loss", "distillation loss"),
}
_SCORES = ("color", "shape", "motion")
_WINDOW = 11

Log = list[dict[str, float | int]]


def draw(work: Path, picture: Path) -> Path:
    """Plot every stage found in a work folder, running median over the single steps.

    Raises:
        InputError: no stage has left a log, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(f"curves need matplotlib: {install('plot')}") from None

    logs = {stage: loop.read_log(work / stage) for stage in _STAGES}
    trained = {stage: log for stage, log in logs.items() if log}
    if not trained:
        raise InputError(f"{work}: no stage has left a log there; train first")
    figure = Figure(figsize=(4 * len(trained), 3.2), layout="constrained")
    for position, (stage, log) in enumerate(trained.items()):
        axes = figure.add_subplot(1, len(trained), position + 1)
        name, label = _STAGES[stage]
        steps, values = _series(log, name)
        axes.plot(steps, values, color="0.8", linewidth=0.8)
        axes.plot(steps, _running_median(values), color="C0")
        axes.set(title=stage, xlabel="step", ylabel=label)
        if name == "loss":
            axes.set_yscale("log")
        _draw_scores(axes, log)
    check_writable(picture, overwrite=True)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return picture


def _draw_scores(axes: Any, log: Log) -> None:
    if not any(name in line for line in log for name in _SCORES):
        return
    scores = axes.twinx()
    for number, name in enumerate(_SCORES):
        steps, values = _series(log, name)
        scores.plot(steps, values, "o--", color=f"C{number + 1}", markersize=3, label=name)
    scores.set(ylim=(0, 1.05), ylabel="checker, share right")
    scores.legend(loc="lower right", fontsize=7)


def _series(log: Log, name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(line["step"], line[name]) for line in log if name in line]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    return steps, values


def _running_median(values: np.ndarray) -> np.ndarray:
    padded = np.pad(values, _WINDOW // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _WINDOW), axis=-1)


def main(arguments: list[str] | None = None) -> int:
    """Write the picture; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m qsjax.tiny.curves", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/tiny"), help="default: outputs/tiny"
    )
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="default: curves.png")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {draw(options.work, options.out)}")
    except QsjaxError as error:
        print(f"qsjax.tiny.curves: {on_command_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
