"""What the grid of sparse attention found: markdown tables, plain data, contact sheets."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.evaluate.plots import write_sheet
from qsjax.evaluate.sparse import SparseExperiment, SparseOutcome
from qsjax.evaluate.sparse_grid import COMPARED
from qsjax.evaluate.sparse_plots import draw_sparse
from qsjax.evaluate.statistics import estimate, paired
from qsjax.evaluate.tables import markdown, plain, shown, versions

TABLES = "sparse_tables.md"
NOTE = (
    "PSNR and SSIM of decoded frames against full precision with dense attention, same captions and noise; latent error is"
    " ||z - z'||^2 / ||z'||^2 of the last latents;\nmean +- standard error over clips, differences clip by clip. Attention is what is"
    " computed of it, the mean over steps: dense steps, refreshes and text included; recall is the share of its mass on the listed keys at\nthe last refresh; steps that are left out compute none and are"
    " counted apart."
)


def tables_text(outcomes: Sequence[SparseOutcome]) -> str:
    """One of all settings, then a table a group; the first row of each is what the others are paired with."""
    parts = _settings(outcomes)
    for group, some in groups(outcomes):
        base, rows = some[0], []
        headers = (
            *("", "PSNR, dB", "lowest clip", "SSIM", "latent error", f"PSNR over {base.row.label}, dB"),
            *("attention", "recall", "dense steps", "left out"),
        )  # fmt: skip
        for one in some:
            over = "" if one is base else shown(paired(one.psnr, base.psnr), 2, signed=True)
            rows.append([
                one.row.label,
                shown(estimate(one.psnr), 1),
                f"{one.psnr.min():.1f}",
                shown(estimate(one.ssim), 3),
                shown(estimate(one.latents), 4),
                over,
                f"{100 * one.density:.0f} %",
                f"{100 * one.recall:.0f} %",
                str(one.dense_steps),
                f"{100 * one.skipped:.0f} %",
            ])  # fmt: skip
        parts.append(f"### {group}\n\n{markdown(headers, rows)}")
        if group.startswith("together"):
            parts.append(_interaction(some))
    return "\n\n".join([*parts, NOTE])


def _settings(outcomes: Sequence[SparseOutcome]) -> list[str]:
    """A line a group that has all policies: their PSNR, and what they have over the first order, clip by clip."""
    rows = []
    for group, some in groups(outcomes):
        psnr = {one.row.label: one.psnr for one in some}
        if not psnr.keys() >= set(COMPARED):
            continue
        over = (paired(psnr[name], psnr["first"]) for name in COMPARED if name != "first")
        means = (shown(estimate(psnr[name]), 1) for name in COMPARED)
        rows.append([group, *means, *(shown(one, 2, signed=True) for one in over)])
    differences = (f"{name} over first" for name in COMPARED if name != "first")
    headers = ("PSNR, dB", *COMPARED, *differences)
    return [f"### policies\n\n{markdown(headers, rows)}"] if rows else []


def _interaction(some: Sequence[SparseOutcome]) -> str:
    """Whether two errors add up: the latent error of both over the sum of the parts, clip by clip."""
    quantized, sparse, both = (one.latents for one in some)
    ratio = estimate(both / (quantized + sparse))
    return (
        f"Latent error of both over the sum of the parts: {shown(ratio, 2)} clip by clip,"
        f" {both.mean() / (quantized.mean() + sparse.mean()):.2f} of the means."
    )


def plain_report(experiment: SparseExperiment, outcomes: Sequence[SparseOutcome]) -> dict[str, Any]:
    """The same as plain data."""
    rows = []
    for group, some in groups(outcomes):
        base = some[0]
        for one in some:
            found = {name: estimate(getattr(one, name)) for name in ("psnr", "ssim", "latents")}
            if one is not base:
                found["psnr_difference"] = paired(one.psnr, base.psnr)
            facts = {
                "group": group,
                "label": one.row.label,
                "density": one.density,
                "recall": one.recall,
                "dense_steps": one.dense_steps,
                "skipped": one.skipped,
            }
            rows.append(facts | plain(found))
    return {"run": experiment.facts, "versions": versions(), "rows": rows}


def write_report(
    experiment: SparseExperiment,
    outcomes: Sequence[SparseOutcome],
    folder: Path,
    *,
    plots: bool = False,
) -> list[Path]:
    """Write tables, a contact sheet a group and, if asked for, plots; return the files.

    Raises:
        InputError: plots without matplotlib, or a place that cannot be written.
    """
    facts = ", ".join(f"{name} {value}" for name, value in experiment.facts.items())
    used = ", ".join(f"{name} {value}" for name, value in versions().items())
    tables = folder / TABLES
    tables.write_text(f"{tables_text(outcomes)}\n\n{facts}; {used}\n", encoding="utf-8")
    written = [tables]
    for group, some in groups(outcomes):
        full = experiment.videos(None, some[0].row.shift)
        if full is None:
            continue
        seen = {one.row.label: experiment.videos(one.row) for one in some}
        videos: dict[str, np.ndarray] = {
            label: made for label, made in seen.items() if made is not None
        }
        sheet = folder / f"{re.sub(r'[^a-z0-9]+', '-', group.lower())}.png"
        captions = experiment.captions[: len(full)]
        written.append(write_sheet({"full precision": full, **videos}, captions, sheet))
    return written + (draw_sparse(outcomes, folder) if plots else [])


def groups(outcomes: Sequence[SparseOutcome]) -> Iterator[tuple[str, list[SparseOutcome]]]:
    """Outcomes by table, in the grid's order."""
    for name, some in groupby(outcomes, key=lambda one: one.row.group):
        yield name, list(some)
