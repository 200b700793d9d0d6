"""Results of a grid on disk: JSON lines, one a finished row, so that a run that was stopped goes on where it was.

The first line says of which run they are: model, captions, seeds. The file is replaced as a whole after each row, and is
therefore always complete; one process at a time writes to a folder (`Results.held`).
"""

import hashlib
import json
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qsjax.disk import write_atomically, writing
from qsjax.errors import CheckpointError, InputError
from qsjax.locks import lock
from qsjax.untrusted import parse_object, read_bytes, shown

FILE = "results.jsonl"
_LARGEST = 256 << 20
"""Bytes of the rows of a grid; ours have some hundred kilobytes."""


class Results:
    """The finished rows of one run.

    Args:
        folder: holds the file; made if it is not there.
        run: plain data that all rows have in common; a folder holds the rows of one run.

    Raises:
        InputError: the folder holds the rows of another run, or cannot be made.
        CheckpointError: the file there is damaged.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.path = folder / FILE
        self._run = json.loads(json.dumps(dict(run)))
        self._rows: dict[str, dict[str, Any]] = {}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(self.path):
            self._read()

    @contextmanager
    def held(self, keys: Iterable[str]) -> Generator[None, None, None]:
        """Hold the file while rows are measured: a process that measures the same ones waits, and finds them then.

        Args:
            keys: of the rows.

        Raises:
            InputError: another process measures other rows there.
        """
        content = json.dumps([self._run, sorted(keys)])
        identity = hashlib.sha256(content.encode()).hexdigest()
        with lock(self.path, doing="evaluate", identity=identity):
            if os.path.lexists(self.path):  # others may have written since it was opened
                self._read()
            yield

    def get(self, key: str) -> dict[str, Any] | None:
        """The finished row of that key; None if there is none, or if it failed and may be tried again."""
        row = self._rows.get(key)
        return None if row is None or "failure" in row else row

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Store a row, in place of an earlier one of that key."""
        self._rows[key] = {"key": key, **row}
        self._write()

    def relabel(self, names: Mapping[str, str]) -> None:
        """Give stored rows the names that their experiments have now.

        A grid changes: an experiment gets another name, or a name another experiment. A row whose name belongs to another one
        now, and which has none, is marked as old.

        Args:
            names: key -> name.
        """
        before, taken = json.dumps(self._rows), set(names.values())
        for key, row in self._rows.items():
            if key in names:
                row["row"] = names[key]
            elif row.get("row") in taken:
                row["row"] = f"{row['row']} (of an older grid)"
        if json.dumps(self._rows) != before:
            self._write()

    def _write(self) -> None:
        lines = [{"run": self._run}, *self._rows.values()]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_atomically(self.path, text.encode())

    def _read(self) -> None:
        lines = [
            parse_object(line, f"{self.path}: line {number}")
            for number, line in enumerate(read_bytes(self.path, _LARGEST).splitlines(), 1)
        ]
        run = lines[0].get("run") if lines else None
        rows = {line["key"]: line for line in lines[1:] if isinstance(line.get("key"), str)}
        if not isinstance(run, dict) or len(rows) != len(lines) - 1:
            raise CheckpointError(
                f"{self.path}: is damaged (it does not say its run first, then a row of a key of its own in each line); remove it"
                f" and run again"
            )
        changed = sorted(
            name for name in {*run, *self._run} if run.get(name) != self._run.get(name)
        )
        if changed:
            differences = ", ".join(
                f"{shown(name)} {shown(run.get(name))} there and {shown(self._run.get(name))} now"
                for name in changed[:8]
            )
            raise InputError(
                f"{self.path}: holds the rows of another run ({differences}); name another folder"
            )
        self._rows = rows
