"""What calibration did: a summary in numbers, and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.address import install
from qsjax.disk import replacing
from qsjax.errors import InputError
from qsjax.page import Page
from qsjax.video import check_writable

_TERMS = {"output": "block output", "pooled": "pooled attention", "rows": "attention rows"}


def summary(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all blocks: mean squared errors against round-to-nearest, as geometric means of ratios, and mean SQNR.

    Args:
        reports: of the blocks.

    Returns:
        "output_error" and "attention_shift": the end's over round-to-nearest's, below 1 is better; "sqnr" and
        "sqnr_round_to_nearest" in decibels over all layers; "seconds".
    """

    def ratio(term: str) -> float:
        logs = [
            np.log(max(report["end"][term], 1e-30) / max(report["round_to_nearest"][term], 1e-30))
            for report in reports
        ]
        return float(np.exp(np.mean(logs)))

    def mean(key: str) -> float:
        return float(np.mean([value for report in reports for value in report[key].values()]))

    return {
        "output_error": round(ratio("output"), 4),
        "attention_shift": round(ratio("shift"), 4),
        "sqnr": round(mean("sqnr"), 2),
        "sqnr_round_to_nearest": round(mean("sqnr_round_to_nearest"), 2),
        "seconds": round(sum(report["seconds"] for report in reports), 1),
    }


def tuning_summary(losses: Sequence[float]) -> dict[str, float]:
    """Relative errors of the velocity, sqrt(||v_q - v||^2 / ||v||^2), in the first and the last tenth of tuning.

    Args:
        losses: of every step; none gives no figures.
    """
    if not losses:
        return {}
    tenth = max(1, len(losses) // 10)
    return {
        "velocity_error_before": round(float(np.sqrt(np.mean(losses[:tenth]))), 4),
        "velocity_error_after": round(float(np.sqrt(np.mean(losses[-tenth:]))), 4),
    }


def as_text(reports: Sequence[dict[str, Any]], losses: Sequence[float] = ()) -> str:
    """A line a block: errors over round-to-nearest's, and the mean SQNR of its layers before and after; and a line on tuning."""
    lines = ["block               output  attention  SQNR rtn -> now    seconds"]
    for report in reports:
        plain, end = report["round_to_nearest"], report["end"]
        before, after = (
            np.mean(list(report[key].values())) for key in ("sqnr_round_to_nearest", "sqnr")
        )
        lines.append(
            f"{report['block']:18} {_over(end, plain, 'output'):6.3f}x  {_over(end, plain, 'shift'):7.3f}x"
            f"  {before:6.2f} -> {after:5.2f} dB  {report['seconds']:8.1f}"
        )
    whole = summary(reports)
    lines.append(
        f"{'all':18} {whole['output_error']:6.3f}x  {whole['attention_shift']:7.3f}x"
        f"  {whole['sqnr_round_to_nearest']:6.2f} -> {whole['sqnr']:5.2f} dB  {whole['seconds']:8.1f}"
    )
    if losses:
        before, after = tuning_summary(losses).values()
        lines.append(
            f"tuned end to end in {len(losses)} steps: velocity error {100 * before:.1f} % in the first tenth of them,"
            f" {100 * after:.1f} % in the last"
        )
    return "\n".join(lines)


def plot(reports: Sequence[dict[str, Any]], path: Path, losses: Sequence[float] = ()) -> Path:
    """Draw loss curves, errors against round-to-nearest and SQNR of every layer to a PNG; and the losses of tuning.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    figure = figure_class(path)(figsize=(17 if losses else 13, 4), layout="constrained")
    curves, errors, layers, *tuning = figure.subplots(1, 4 if losses else 3)
    for number, report in enumerate(reports):
        if report["loss"]:
            shade = 0.1 + 0.8 * number / max(len(reports) - 1, 1)
            curves.plot(
                range(1, len(report["loss"]) + 1), report["loss"], color=(shade, 0.3, 1 - shade)
            )
    curves.set(xlabel="epoch", ylabel="loss over its start", title="first block blue, last red")
    at = np.arange(len(reports))
    for term, label in _TERMS.items():
        over = [_over(report["end"], report["round_to_nearest"], term) for report in reports]
        errors.plot(at, over, marker=".", label=label)
    errors.axhline(1, color="grey", linewidth=0.8)
    errors.set(xlabel="block", ylabel="squared error over round-to-nearest's", yscale="log")
    errors.legend(fontsize=8)
    pairs = np.array(
        [
            (report["sqnr_round_to_nearest"][name], value)
            for report in reports
            for name, value in report["sqnr"].items()
        ]
    )
    layers.scatter(pairs[:, 0], pairs[:, 1], s=12)
    ends = [float(pairs.min()), float(pairs.max())]
    layers.plot(ends, ends, color="grey", linewidth=0.8)
    layers.set(xlabel="SQNR round-to-nearest, dB", ylabel="SQNR now, dB", title="layers")
    if losses:
        tenth = max(1, len(losses) // 10)
        smooth = np.convolve(losses, np.full(tenth, 1 / tenth), "valid")
        steps = np.arange(1, len(losses) + 1)
        tuning[0].plot(steps, 100 * np.sqrt(losses), ".", color="lightgrey")
        tuning[0].plot(steps[tenth - 1 :], 100 * np.sqrt(smooth))
        tuning[0].set(xlabel="step", ylabel="velocity error, %", title="tuning end to end")
    check_writable(path, overwrite=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


def write_page(
    reports: Sequence[dict[str, Any]], path: Path, losses: Sequence[float] = (), *, title: str
) -> Path:
    """Write the table and the same curves as one page of HTML.

    Raises:
        InputError: the file cannot be written.
    """
    page = Page(title)
    page.preformatted(as_text(reports, losses))
    errors = {
        label: [_over(report["end"], report["round_to_nearest"], term) for report in reports]
        for term, label in _TERMS.items()
    }
    page.heading("Blocks")
    page.chart(errors, across="block", up="squared error over round-to-nearest's")
    sqnr = {
        label: [float(np.mean(list(report[key].values()))) for report in reports]
        for key, label in (("sqnr_round_to_nearest", "round to nearest"), ("sqnr", "now"))
    }
    page.chart(sqnr, across="block", up="mean SQNR of the layers, dB")
    curves = [report for report in reports if report["loss"]]
    if curves:
        ends = {str(report["block"]): report["loss"] for report in (curves[0], curves[-1])}
        page.heading("Training")
        page.chart(ends, across="epoch", up="loss over its start, first and last block")
    if losses:
        velocity = (100 * np.sqrt(losses)).tolist()
        page.chart({"tuning": velocity}, across="step", up="velocity error, %, tuning end to end")
    return page.write(path)


def figure_class(path: Path) -> Any:
    """The class of matplotlib's figures, which needs no display; ask for it before the work whose result is drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            f"{path}: plots need matplotlib: {install('plot')}, or leave `plot_to` out"
        ) from error
    return Figure


def _over(end: dict[str, float], plain: dict[str, float], term: str) -> float:
    return end[term] / max(plain[term], 1e-30)
