"""What calibration did: a summary in numbers, and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.errors import InputError

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


def as_text(reports: Sequence[dict[str, Any]]) -> str:
    """A line a block: errors over round-to-nearest's, and the mean SQNR of its layers before and after."""
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
    return "\n".join(lines)


def plot(reports: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw loss curves, errors against round-to-nearest and SQNR of every layer to a PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            f"{path}: plots need matplotlib; pip install 'qsjax[plot]' or leave `plot_to` out"
        ) from error
    figure = Figure(figsize=(13, 4), layout="constrained")
    curves, errors, layers = figure.subplots(1, 3)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _over(end: dict[str, float], plain: dict[str, float], term: str) -> float:
    return end[term] / max(plain[term], 1e-30)
