"""What a refused conversion is: one sentence, exit status 2, and nothing left."""

from pathlib import Path

import pytest

from convert.__main__ import main


def assert_refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The conversion of these arguments, whose output would be in the folder."""
    before = sorted(folder.iterdir())
    assert main(arguments) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if not line.lstrip().startswith("convert:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    assert len(lines[0]) < 1300
    assert sorted(folder.iterdir()) == before
