"""The report of a grid: tables, plain data, and a contact sheet and plots by table."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Generic

from qsjax.evaluate.plots import write_sheet
from qsjax.experiments.experiment import Experiment, OutcomeT
from qsjax.experiments.row import RowT
from qsjax.versions import EVALUATION, versions


class Report(ABC, Generic[RowT, OutcomeT]):
    """What is shown of a grid's outcomes; the first row of each table is what its others are paired with.

    Args:
        experiment: that they are from.
        outcomes: of the grid, tables one after the other.
    """

    TABLES: ClassVar[str]
    """Name of the file of tables."""

    def __init__(
        self, experiment: Experiment[RowT, OutcomeT], outcomes: Sequence[OutcomeT]
    ) -> None:
        self._experiment, self._outcomes = experiment, outcomes

    @abstractmethod
    def text(self) -> str:
        """Markdown tables, and what their figures are."""

    def plain(self) -> dict[str, Any]:
        """The same as plain data: run, versions, and estimates or a failure for each row."""
        rows = [
            self._plain_row(outcome, members[0])
            for _, members in groups(self._outcomes)
            for outcome in members
        ]
        return {"run": self._experiment.facts, "versions": versions(EVALUATION), "rows": rows}

    def write(self, folder: Path, *, plots: bool = False) -> list[Path]:
        """Write tables, a contact sheet a table and, if asked for, plots; return the files.

        Raises:
            InputError: plots without matplotlib, or a place that cannot be written.
        """
        facts = ", ".join(f"{name} {value}" for name, value in self._experiment.facts.items())
        used = ", ".join(f"{name} {value}" for name, value in versions(EVALUATION).items())
        tables = folder / self.TABLES
        tables.write_text(f"{self.text()}\n\n{facts}; {used}\n", encoding="utf-8")
        written = [tables]
        for group, members in groups(self._outcomes):
            written += self._write_sheet(group, members, folder)
            written += self._draw_table(group, members, folder) if plots else []
        return written + (self._draw(folder) if plots else [])

    @abstractmethod
    def _plain_row(self, outcome: OutcomeT, base: OutcomeT) -> dict[str, Any]:
        """A row as plain data; `base` is the first row of its table."""

    def _draw_table(self, group: str, members: Sequence[OutcomeT], folder: Path) -> list[Path]:
        """Plots of one table."""
        return []

    def _draw(self, folder: Path) -> list[Path]:
        """Plots over several tables."""
        return []

    def _write_sheet(self, group: str, members: Sequence[OutcomeT], folder: Path) -> list[Path]:
        full = self._experiment.reference_videos(members[0].row)
        if full is None:
            return []
        videos = {"full precision": full}
        for outcome in members:
            clips = self._experiment.videos(outcome.row)
            if clips is not None:
                videos[outcome.row.label] = clips
        captions = self._experiment.captions[: len(full)]
        return [write_sheet(videos, captions, folder / f"{file_name(group)}.png")]


def groups(outcomes: Sequence[OutcomeT]) -> Iterator[tuple[str, list[OutcomeT]]]:
    """Outcomes by table, in the grid's order."""
    for name, members in groupby(outcomes, key=lambda outcome: outcome.row.group):
        yield name, list(members)


def file_name(group: str) -> str:
    """A table's name for files."""
    return re.sub(r"[^a-z0-9]+", "-", group.lower()).strip("-")
