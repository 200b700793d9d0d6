"""What the grid of sparse attention shows: markdown tables, plain data, plots over densities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.evaluate.statistics import estimate_over_seeds
from qsjax.evaluate.tables import markdown, plain, shown
from qsjax.experiments.report import Report, groups
from qsjax.experiments.sparse.experiment import SparseExperiment, SparseOutcome
from qsjax.experiments.sparse.grid import COMPARED, SparseRow
from qsjax.experiments.sparse.lines import SparseLine, lines
from qsjax.experiments.sparse.plots import draw_sparse

NOTE = (
    "PSNR and SSIM of decoded frames against full precision with dense attention, same captions and noise; latent error is"
    " ||z - z'||^2 / ||z'||^2 of the last latents;\nmean +- standard error over clips (and calibrations, where there are several), differences clip by clip. Attention is what is"
    " computed of it, the mean over steps: dense steps, refreshes and text included; recall is the share of its mass on the listed keys at\nthe last refresh; steps that are left out compute none and are"
    " counted apart."
)


class SparseReport(Report[SparseRow, SparseOutcome, SparseLine]):
    """Tables with differences to the first policy; PSNR over densities, and bars where nothing else differs."""

    TABLES = "sparse_tables.md"

    def __init__(self, experiment: SparseExperiment, outcomes: Sequence[SparseOutcome]) -> None:
        super().__init__(experiment, lines(outcomes))

    def text(self) -> str:
        """One table of all settings, then a table a group, and what their figures are."""
        return tables_text(self._lines)

    def _plain_row(self, line: SparseLine, base: SparseLine) -> dict[str, Any]:
        estimates = {name: line.estimate(name) for name in ("psnr", "ssim", "latents")}
        difference = None if line is base else line.paired("psnr", base)
        if difference is not None:
            estimates["psnr_difference"] = difference
        facts = {
            "group": line.row.group,
            "label": line.row.label,
            "density": line.density,
            "recall": line.recall,
            "dense_steps": line.dense_steps,
            "skipped": line.skipped,
        }
        return facts | plain(estimates)

    def _draw(self, folder: Path) -> list[Path]:
        return draw_sparse(self._lines, folder)


def tables_text(lines: Sequence[SparseLine]) -> str:
    """One of all settings, then a table a group; the first row of each is what the others are paired with."""
    parts = _settings(lines)
    for group, members in groups(lines):
        base, rows = members[0], list[list[str]]()
        repeated = any(len(line.seeds) > 1 for line in members)
        headers = (
            *("", "PSNR, dB", "lowest clip", "SSIM", "latent error", f"PSNR over {base.row.label}, dB"),
            *("attention", "recall", "dense steps", "left out", *(["seeds"] if repeated else [])),
        )  # fmt: skip
        for line in members:
            difference = None if line is base else line.paired("psnr", base)
            rows.append([
                line.row.label,
                shown(line.estimate("psnr"), 1),
                f"{line.psnr.min():.1f}",
                shown(line.estimate("ssim"), 3),
                shown(line.estimate("latents"), 4),
                "" if difference is None else shown(difference, 2, signed=True),
                f"{100 * line.density:.0f} %",
                f"{100 * line.recall:.0f} %",
                str(line.dense_steps),
                f"{100 * line.skipped:.0f} %",
                *([str(len(line.seeds))] if repeated else []),
            ])  # fmt: skip
        parts.append(f"### {group}\n\n{markdown(headers, rows)}")
        if group.startswith("together"):
            parts.append(_interaction(members))
        if group.startswith("placement"):
            parts.append(_differences(members))
    return "\n\n".join([*parts, NOTE])


def _settings(lines: Sequence[SparseLine]) -> list[str]:
    """A line a group that has all policies: their PSNR, and what they have over the first order, clip by clip."""
    rows = []
    for group, members in groups(lines):
        by_label = {line.row.label: line for line in members}
        if not by_label.keys() >= set(COMPARED):
            continue
        over = (
            by_label[name].paired("psnr", by_label["first"]) for name in COMPARED if name != "first"
        )
        means = (shown(by_label[name].estimate("psnr"), 1) for name in COMPARED)
        rows.append([group, *means, *(shown(one, 2, signed=True) if one else "" for one in over)])
    differences = (f"{name} over first" for name in COMPARED if name != "first")
    headers = ("PSNR, dB", *COMPARED, *differences)
    return [f"### policies\n\n{markdown(headers, rows)}"] if rows else []


def _differences(members: Sequence[SparseLine]) -> str:
    """Latent error over that of the first row, clip by clip: as a difference, and as the mean logarithm of the ratio, to which a
    single clip that is lost does not count for more than the others."""
    base, *others = members
    rows = []
    for one in others:
        difference = one.paired("latents", base)
        ratio = estimate_over_seeds(np.log(one.latents / base.latents))
        rows.append(
            [
                one.row.label,
                "" if difference is None else shown(difference, 4, signed=True),
                shown(ratio, 2, signed=True),
            ]
        )
    over = f"latent error over {base.row.label}"
    return markdown(("", over, "logarithm of the ratio"), rows)


def _interaction(members: Sequence[SparseLine]) -> str:
    """Whether two errors add up: the latent error of both over the sum of the parts, clip by clip."""
    quantized, sparse, both = (line.latents for line in members)
    ratio = estimate_over_seeds(both / (quantized + sparse))
    return (
        f"Latent error of both over the sum of the parts: {shown(ratio, 2)} clip by clip,"
        f" {both.mean() / (quantized.mean() + sparse.mean()):.2f} of the means."
    )
