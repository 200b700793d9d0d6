"""What the grid of sparse attention shows: markdown tables, plain data, plots over densities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.evaluate.statistics import estimate, paired
from qsjax.evaluate.tables import markdown, plain, shown
from qsjax.experiments.report import Report, groups
from qsjax.experiments.sparse.experiment import SparseOutcome
from qsjax.experiments.sparse.grid import COMPARED, SparseRow
from qsjax.experiments.sparse.plots import draw_sparse

NOTE = (
    "PSNR and SSIM of decoded frames against full precision with dense attention, same captions and noise; latent error is"
    " ||z - z'||^2 / ||z'||^2 of the last latents;\nmean +- standard error over clips, differences clip by clip. Attention is what is"
    " computed of it, the mean over steps: dense steps, refreshes and text included; recall is the share of its mass on the listed keys at\nthe last refresh; steps that are left out compute none and are"
    " counted apart."
)


class SparseReport(Report[SparseRow, SparseOutcome, SparseOutcome]):
    """Tables with differences to the first policy; PSNR over densities, and bars where nothing else differs."""

    TABLES = "sparse_tables.md"

    def text(self) -> str:
        """One table of all settings, then a table a group, and what their figures are."""
        return tables_text(self._lines)

    def _plain_row(self, line: SparseOutcome, base: SparseOutcome) -> dict[str, Any]:
        estimates = {name: estimate(getattr(line, name)) for name in ("psnr", "ssim", "latents")}
        if line is not base:
            estimates["psnr_difference"] = paired(line.psnr, base.psnr)
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


def tables_text(outcomes: Sequence[SparseOutcome]) -> str:
    """One of all settings, then a table a group; the first row of each is what the others are paired with."""
    parts = _settings(outcomes)
    for group, members in groups(outcomes):
        base, rows = members[0], []
        headers = (
            *("", "PSNR, dB", "lowest clip", "SSIM", "latent error", f"PSNR over {base.row.label}, dB"),
            *("attention", "recall", "dense steps", "left out"),
        )  # fmt: skip
        for outcome in members:
            over = "" if outcome is base else shown(paired(outcome.psnr, base.psnr), 2, signed=True)
            rows.append([
                outcome.row.label,
                shown(estimate(outcome.psnr), 1),
                f"{outcome.psnr.min():.1f}",
                shown(estimate(outcome.ssim), 3),
                shown(estimate(outcome.latents), 4),
                over,
                f"{100 * outcome.density:.0f} %",
                f"{100 * outcome.recall:.0f} %",
                str(outcome.dense_steps),
                f"{100 * outcome.skipped:.0f} %",
            ])  # fmt: skip
        parts.append(f"### {group}\n\n{markdown(headers, rows)}")
        if group.startswith("together"):
            parts.append(_interaction(members))
        if group.startswith("placement"):
            parts.append(_differences(members))
    return "\n\n".join([*parts, NOTE])


def _settings(outcomes: Sequence[SparseOutcome]) -> list[str]:
    """A line a group that has all policies: their PSNR, and what they have over the first order, clip by clip."""
    rows = []
    for group, members in groups(outcomes):
        psnr = {outcome.row.label: outcome.psnr for outcome in members}
        if not psnr.keys() >= set(COMPARED):
            continue
        over = (paired(psnr[name], psnr["first"]) for name in COMPARED if name != "first")
        means = (shown(estimate(psnr[name]), 1) for name in COMPARED)
        rows.append([group, *means, *(shown(one, 2, signed=True) for one in over)])
    differences = (f"{name} over first" for name in COMPARED if name != "first")
    headers = ("PSNR, dB", *COMPARED, *differences)
    return [f"### policies\n\n{markdown(headers, rows)}"] if rows else []


def _differences(members: Sequence[SparseOutcome]) -> str:
    """Latent error over that of the first row, clip by clip: as a difference, and as the mean logarithm of the ratio, to which a
    single clip that is lost does not count for more than the others."""
    base, *others = members
    rows = [
        [
            one.row.label,
            shown(paired(one.latents, base.latents), 4, signed=True),
            shown(estimate(np.log(one.latents / base.latents)), 2, signed=True),
        ]
        for one in others
    ]
    over = f"latent error over {base.row.label}"
    return markdown(("", over, "logarithm of the ratio"), rows)


def _interaction(members: Sequence[SparseOutcome]) -> str:
    """Whether two errors add up: the latent error of both over the sum of the parts, clip by clip."""
    quantized, sparse, both = (outcome.latents for outcome in members)
    ratio = estimate(both / (quantized + sparse))
    return (
        f"Latent error of both over the sum of the parts: {shown(ratio, 2)} clip by clip,"
        f" {both.mean() / (quantized.mean() + sparse.mean()):.2f} of the means."
    )
