"""The report of a grid: tables, plain data, and a contact sheet and plots by table."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from qsjax.disk import write_atomically
from qsjax.evaluate.plots import write_sheet
from qsjax.experiments.experiment import Experiment, OutcomeT
from qsjax.experiments.row import Row, RowT
from qsjax.page import Page
from qsjax.versions import EVALUATION, versions


@runtime_checkable
class Line(Protocol):
    """What a table has a row of: an outcome, or several of one experiment."""

    @property
    def row(self) -> Row:
        """The experiment."""


LineT = TypeVar("LineT", bound=Line)


class Report(ABC, Generic[RowT, OutcomeT, LineT]):
    """What is shown of a grid; the first row of each table is what its others are paired with.

    Args:
        experiment: that it is from.
        lines: rows of the tables, one table after the other.
    """

    TABLES: ClassVar[str]
    """Name of the file of tables."""

    def __init__(self, experiment: Experiment[RowT, OutcomeT], lines: Sequence[LineT]) -> None:
        self._experiment, self._lines = experiment, lines

    @abstractmethod
    def text(self) -> str:
        """Markdown tables, and what their figures are."""

    def plain(self) -> dict[str, Any]:
        """The same as plain data: run, versions, and estimates or a failure for each row."""
        rows = [
            self._plain_row(line, members[0])
            for _, members in groups(self._lines)
            for line in members
        ]
        return {"run": self._experiment.facts, "versions": versions(EVALUATION), "rows": rows}

    def write(self, folder: Path, *, plots: bool = False) -> list[Path]:
        """Write tables, a contact sheet a table, plots if asked for, and a page with all of it; return the files.

        Raises:
            InputError: plots without matplotlib, or a place that cannot be written.
        """
        facts = ", ".join(f"{name} {value}" for name, value in self._experiment.facts.items())
        used = ", ".join(f"{name} {value}" for name, value in versions(EVALUATION).items())
        tables = folder / self.TABLES
        write_atomically(tables, f"{self.text()}\n\n{facts}; {used}\n".encode())
        written = [tables]
        for group, members in groups(self._lines):
            written += self._write_sheet(group, members, folder)
            written += self._draw_table(group, members, folder) if plots else []
        written += self._draw(folder) if plots else []
        page = Page(tables.stem.replace("_", " "))
        page.markdown(self.text())
        for path in written[1:]:
            page.picture(path, path.stem)
        page.paragraph(f"{facts}; {used}")
        return [*written, page.write(tables.with_suffix(".html"))]

    @abstractmethod
    def _plain_row(self, line: LineT, base: LineT) -> dict[str, Any]:
        """A row as plain data; `base` is the first row of its table."""

    def _draw_table(self, group: str, members: Sequence[LineT], folder: Path) -> list[Path]:
        """Plots of one table."""
        return []

    def _draw(self, folder: Path) -> list[Path]:
        """Plots over several tables."""
        return []

    def _write_sheet(self, group: str, members: Sequence[LineT], folder: Path) -> list[Path]:
        full = self._experiment.reference_videos(members[0].row)
        if full is None:
            return []
        videos = {"full precision": full}
        for line in members:
            clips = self._experiment.videos(line.row)
            if clips is not None:
                videos[line.row.label] = clips
        captions = self._experiment.clips.captions[: len(full)]
        return [write_sheet(videos, captions, folder / f"{file_name(group)}.png")]


def groups(lines: Sequence[LineT]) -> Iterator[tuple[str, list[LineT]]]:
    """Rows of tables by table, in the grid's order."""
    for name, members in groupby(lines, key=lambda line: line.row.group):
        yield name, list(members)


def file_name(group: str) -> str:
    """A table's name for files."""
    return re.sub(r"[^a-z0-9]+", "-", group.lower()).strip("-")
