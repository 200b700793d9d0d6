"""Comparisons as markdown tables and as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

from qsjax.evaluate.repeats import Repeats
from qsjax.evaluate.statistics import Estimate

NOTE = (
    "Velocity error is ||v_q - v|| / ||v|| at the latents of the full-precision run, the mean over steps. PSNR and SSIM of decoded"
    " frames against full\nprecision, same captions and noise; PSNR of one mean squared error a clip, and the mean over frames of each"
    " frame's (Sparse VideoGen's metric).\nCaption score: share of clips that show what their caption says, by a checker. Mean +- standard"
    " error over clips and, where there are several, calibration\nseeds; differences are taken seed by seed and clip by clip."
    "\nAttention shift: mean squared error of attention rows on full-precision inputs, over that of rounding to nearest; the mean"
    " over blocks."
)
FIGURES = ("velocity", "psnr", "frame_psnr", "ssim", "caption_score", "lpips")
"""Those of a comparison, the most telling first: of 32 clips, velocity errors resolve differences that PSNR needs hundreds for."""


def summary(result: Repeats, baseline: Repeats | None = None) -> dict[str, Estimate]:
    """Estimates of the figures that there are ("velocity" is the mean over steps) and, with a baseline, "velocity_difference" and
    "psnr_difference".

    Raises:
        InputError: a baseline of another number of clips.
    """
    found = {name: result.estimate(name) for name in FIGURES}
    if baseline is not None:
        found |= {f"{name}_difference": result.paired(name, baseline) for name in FIGURES[:2]}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def comparison_table(
    results: Mapping[str, Repeats | str],
    *,
    first: str = "model",
    baseline: str | None = None,
    full: Estimate | None = None,
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A row for each result, in order; columns that no result has are left out.

    Args:
        results: by label; a sentence instead of a comparison says why there is none.
        first: title of the labels' column.
        baseline: label that the others are paired with; None, or one without a comparison, leaves the columns out.
        full: caption score of full precision, which then has a row at the top.
        more: further columns, by title: a cell for each label that has one.
    """
    base = results.get(baseline) if baseline is not None else None
    base = base if isinstance(base, Repeats) else None
    columns = {title: {} for title in _titles(baseline)}
    for label, result in results.items():
        if isinstance(result, Repeats):
            for title, cell in _cells(result, None if result is base else base, baseline).items():
                columns[title][label] = cell
    if full is not None:
        columns[_MAIN][FULL] = "0"
        columns[_CAPTIONS][FULL] = shown(full, 0, scale=100.0)
    columns |= {title: dict(cells) for title, cells in (more or {}).items()}
    titles = [title for title, cells in columns.items() if cells or title == _MAIN]
    labels = [*([FULL] if full is not None else []), *results]
    rows = [[label, *(columns[title].get(label, "") for title in titles)] for label in labels]
    for row in rows:
        if isinstance(failure := results.get(row[0]), str):
            row[1] = failure
    return markdown([first, *titles], rows)


FULL = "full precision"
_MAIN, _CAPTIONS = "velocity error, %", "caption score, %"


def _titles(baseline: str | None) -> tuple[str, ...]:
    return (
        *(_MAIN, f"error over {baseline}", "PSNR, dB", f"PSNR over {baseline}, dB", "lowest clip"),
        *("PSNR of frames, dB", "SSIM", _CAPTIONS, "LPIPS", "seeds"),
    )


def _cells(result: Repeats, base: Repeats | None, baseline: str | None) -> dict[str, str]:
    """Title -> cell, for the figures that there are."""
    estimates = summary(result, base)
    cells = {"lowest clip": f"{estimates['psnr'].lowest:.1f}"}
    if not result.fixed:
        cells["seeds"] = str(len(result.by_seed))
    for title, name, digits, scale in (
        (_MAIN, "velocity", 2, 100.0),
        (f"error over {baseline}", "velocity_difference", 2, 100.0),
        ("PSNR, dB", "psnr", 1, 1.0),
        (f"PSNR over {baseline}, dB", "psnr_difference", 2, 1.0),
        ("PSNR of frames, dB", "frame_psnr", 1, 1.0),
        ("SSIM", "ssim", 3, 1.0),
        (_CAPTIONS, "caption_score", 0, 100.0),
        ("LPIPS", "lpips", 4, 1.0),
    ):
        if name in estimates:
            signed = name.endswith("difference")
            cells[title] = shown(estimates[name], digits, scale=scale, signed=signed)
    return cells


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
