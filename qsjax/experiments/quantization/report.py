"""What the grid of quantized models shows: markdown tables, plain data, plots by table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qsjax.evaluate.plots import draw
from qsjax.evaluate.repeats import Repeats
from qsjax.evaluate.statistics import Estimate
from qsjax.evaluate.tables import NOTE, comparison_table, plain, summary
from qsjax.experiments.quantization.experiment import QuantizationExperiment, QuantizationOutcome
from qsjax.experiments.quantization.grid import QuantizationRow
from qsjax.experiments.report import Report, file_name, groups


class Line(NamedTuple):
    """A row of a table: the outcomes of all its seeds.

    Attributes:
        row: of the first seed.
        results: of the seeds that did not fail; None where all did.
        failure: of the first seed that failed, None where none did.
        seconds: of every seed, by part of the work.
        shift: attention shift over that of rounding to nearest, the mean over seeds; None where it is not known.
    """

    row: QuantizationRow
    results: Repeats | None
    failure: str | None
    seconds: dict[int, dict[str, float]]
    shift: float | None


class QuantizationReport(Report[QuantizationRow, QuantizationOutcome, Line]):
    """Tables with differences to the first method; bars of velocity errors and PSNR, and velocity errors over steps."""

    TABLES = "tables.md"

    def __init__(
        self, experiment: QuantizationExperiment, outcomes: Sequence[QuantizationOutcome]
    ) -> None:
        super().__init__(experiment, lines(outcomes))
        self._full = experiment.full_score()

    def text(self) -> str:
        """A table a group, and what its figures are."""
        return tables_text(self._lines, self._full)

    def _plain_row(self, line: Line, base: Line) -> dict[str, Any]:
        row: dict[str, Any] = {
            "group": line.row.group,
            "label": line.row.label,
            "outliers": line.row.outliers,
            "seconds": line.seconds,
            "attention_shift": line.shift,
        }
        if line.failure is not None:
            row["failure"] = line.failure
        if line.results is None:
            return row
        return row | plain(summary(line.results, None if line is base else base.results))

    def _draw_table(self, group: str, members: Sequence[Line], folder: Path) -> list[Path]:
        results = {line.row.label: line.results for line in members if line.results is not None}
        return draw(results, folder / file_name(group), title=group) if results else []


def lines(outcomes: Sequence[QuantizationOutcome]) -> list[Line]:
    """One for all seeds of a label, in the order of the outcomes."""
    by_label: dict[tuple[str, str], list[QuantizationOutcome]] = {}
    for outcome in outcomes:
        by_label.setdefault((outcome.row.group, outcome.row.label), []).append(outcome)
    return [_line(members) for members in by_label.values()]


def tables_text(lines: Sequence[Line], full: Estimate | None = None) -> str:
    """A table a group; the first row of each is what the others are paired with.

    Args:
        lines: of the grid, tables one after the other.
        full: caption score of full precision.
    """
    parts = []
    for group, members in groups(lines):
        results = {line.row.label: line.results or f"failed: {line.failure}" for line in members}
        shifts = {line.row.label: f"{line.shift:.2f}" for line in members if line.shift is not None}
        table = comparison_table(
            results,
            first="method",
            baseline=members[0].row.label,
            full=full,
            more={"attention shift": shifts} if shifts else None,
        )
        parts.append(f"### {group}\n\n{table}")
    return "\n\n".join([*parts, NOTE])


def _line(members: Sequence[QuantizationOutcome]) -> Line:
    first = members[0].row
    found = {one.row.seed: one.comparison for one in members if one.comparison is not None}
    # Blocks in 16 bits shift nothing.
    shifts = [one.shift[0] / one.shift[1] for one in members if one.shift and one.shift[1]]
    return Line(
        first,
        Repeats(found, fixed=first.fixed) if found else None,
        next((one.failure for one in members if one.failure is not None), None),
        {one.row.seed: one.seconds for one in members},
        float(np.mean(shifts)) if shifts else None,
    )
