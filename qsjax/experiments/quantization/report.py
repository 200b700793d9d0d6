"""What the grid of quantized models shows: markdown tables, plain data, plots by table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsjax.evaluate.plots import draw
from qsjax.evaluate.tables import NOTE, comparison_table, plain, summary
from qsjax.experiments.quantization.experiment import QuantizationOutcome
from qsjax.experiments.quantization.grid import QuantizationRow
from qsjax.experiments.report import Report, file_name, groups


class QuantizationReport(Report[QuantizationRow, QuantizationOutcome]):
    """Tables with differences to the first method; bars of PSNR and velocity errors over steps."""

    TABLES = "tables.md"

    def text(self) -> str:
        """A table a group, and what its figures are."""
        return tables_text(self._outcomes)

    def _plain_row(self, outcome: QuantizationOutcome, base: QuantizationOutcome) -> dict[str, Any]:
        row: dict[str, Any] = {
            "group": outcome.row.group,
            "label": outcome.row.label,
            "outliers": outcome.row.outliers,
            "seconds": outcome.seconds,
            "attention_shift": outcome.shift,
        }
        if outcome.comparison is None:
            return row | {"failure": outcome.failure}
        other = None if outcome is base else base.comparison
        return row | plain(summary(outcome.comparison, other))

    def _draw_table(
        self, group: str, members: Sequence[QuantizationOutcome], folder: Path
    ) -> list[Path]:
        results = {
            outcome.row.label: outcome.comparison
            for outcome in members
            if outcome.comparison is not None
        }
        return draw(results, folder / file_name(group), title=group) if results else []


def tables_text(outcomes: Sequence[QuantizationOutcome]) -> str:
    """A table a group; the first row of each is what the others are paired with."""
    parts = []
    for group, members in groups(outcomes):
        results = {
            outcome.row.label: outcome.comparison or f"failed: {outcome.failure}"
            for outcome in members
        }
        # Blocks in 16 bits shift nothing.
        shifts = {
            outcome.row.label: f"{outcome.shift[0] / outcome.shift[1]:.2f}"
            for outcome in members
            if outcome.shift and outcome.shift[1]
        }
        more = {"attention shift": shifts} if shifts else None
        table = comparison_table(results, first="method", baseline=members[0].row.label, more=more)
        parts.append(f"### {group}\n\n{table}")
    return "\n\n".join([*parts, NOTE])
