"""Comparisons as markdown tables and as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

from qsjax.evaluate.compare import Comparison
from qsjax.evaluate.statistics import Estimate, estimate, paired

NOTE = (
    "PSNR and SSIM of decoded frames against full precision, same captions and noise; velocity error is"
    " ||v_q - v|| / ||v|| at the latents\nof the full-precision run, the mean over steps; mean +- standard error over clips."
    " Differences are taken clip by clip."
    "\nAttention shift: mean squared error of attention rows on full-precision inputs, over that of rounding to nearest; the mean"
    " over blocks."
)


def summary(comparison: Comparison, baseline: Comparison | None = None) -> dict[str, Estimate]:
    """Estimates over clips: "psnr", "ssim", "velocity" (mean over steps) and, with a baseline, "psnr_difference".

    Raises:
        InputError: a baseline of another number of clips.
    """
    estimates = {
        "psnr": estimate(comparison.psnr),
        "ssim": estimate(comparison.ssim),
        "velocity": estimate(comparison.velocity.mean(axis=0)),
    }
    if baseline is not None:
        estimates["psnr_difference"] = paired(comparison.psnr, baseline.psnr)
    return estimates


def comparison_table(
    results: Mapping[str, Comparison | str],
    *,
    first: str = "model",
    baseline: str | None = None,
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A row for each result, in order.

    Args:
        results: by label; a sentence instead of a comparison says why there is none.
        first: title of the labels' column.
        baseline: label that the others are paired with; None, or one without a comparison, leaves the column out.
        more: further columns, by title: a cell for each label that has one.
    """
    more = more or {}
    base = results.get(baseline) if baseline is not None else None
    base = base if isinstance(base, Comparison) else None
    headers = [first, "PSNR, dB", "lowest clip", "SSIM", "velocity error, %"]
    headers += [f"PSNR over {baseline}, dB"] if base is not None else []
    headers += list(more)
    rows = []
    for label, result in results.items():
        if isinstance(result, str):
            rows.append([label, result, *[""] * (len(headers) - 2)])
            continue
        estimates = summary(result, base)
        cells = [
            label,
            shown(estimates["psnr"], 1),
            f"{estimates['psnr'].lowest:.1f}",
            shown(estimates["ssim"], 3),
            shown(estimates["velocity"], 2, scale=100.0),
        ]
        if base is not None:
            cells.append(
                "" if result is base else shown(estimates["psnr_difference"], 2, signed=True)
            )
        cells += [column.get(label, "") for column in more.values()]
        rows.append(cells)
    return markdown(headers, rows)


def shown(value: Estimate, digits: int, *, scale: float = 1.0, signed: bool = False) -> str:
    """Mean and standard error, as in "24.1 +- 0.7"; of a single clip the mean."""
    mean = f"{scale * value.mean:{'+' if signed else ''}.{digits}f}"
    return mean if value.error is None else f"{mean} +- {scale * value.error:.{digits}f}"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns also line up as text."""
    rows = [[cell.replace("|", "/") for cell in row] for row in rows]
    lines = [headers, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            + " |"
        )

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, rows)])


def plain(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """A summary as plain data for JSON."""
    return {name: value._asdict() for name, value in estimates.items()}
