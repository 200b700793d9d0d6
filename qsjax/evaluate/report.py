"""What the grid found: markdown tables, plain data, contact sheets and plots, by group."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsjax.evaluate.plots import draw, write_sheet
from qsjax.evaluate.quantization import Experiment, Outcome, groups
from qsjax.evaluate.tables import NOTE, comparison_table, plain, summary, versions

TABLES = "tables.md"


def tables_text(outcomes: Sequence[Outcome]) -> str:
    """A table a group; the first row of each is what the others are paired with."""
    parts = []
    for group, some in groups(outcomes):
        results = {one.row.label: one.comparison or f"failed: {one.failure}" for one in some}
        # Blocks in 16 bits shift nothing.
        shifts = {
            one.row.label: f"{one.shift[0] / one.shift[1]:.2f}"
            for one in some
            if one.shift and one.shift[1]
        }
        more = {"attention shift": shifts} if shifts else None
        table = comparison_table(results, first="method", baseline=some[0].row.label, more=more)
        parts.append(f"### {group}\n\n{table}")
    return "\n\n".join([*parts, NOTE])


def plain_report(experiment: Experiment, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The same as plain data: run, versions, and estimates or a failure for each row."""
    rows = []
    for _, some in groups(outcomes):
        base = some[0].comparison
        for one in some:
            row: dict[str, Any] = {
                "group": one.row.group,
                "label": one.row.label,
                "outliers": one.row.outliers,
                "seconds": one.seconds,
                "attention_shift": one.shift,
            }
            if one.comparison is None:
                row["failure"] = one.failure
            else:
                row |= plain(summary(one.comparison, None if one.comparison is base else base))
            rows.append(row)
    return {"run": experiment.facts, "versions": versions(), "rows": rows}


def write_report(
    experiment: Experiment, outcomes: Sequence[Outcome], folder: Path, *, plots: bool = False
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
    full = experiment.videos()
    for group, some in groups(outcomes):
        name = re.sub(r"\W+", "-", group).lower()
        if full is not None:
            seen = {one.row.label: experiment.videos(one.row) for one in some}
            videos = {label: made for label, made in seen.items() if made is not None}
            captions = experiment.captions[: len(full)]
            sheet = folder / f"{name}.png"
            written.append(write_sheet({"full precision": full, **videos}, captions, sheet))
        results = {one.row.label: one.comparison for one in some if one.comparison is not None}
        if plots and results:
            written += draw(results, folder / name, title=group)
    return written
