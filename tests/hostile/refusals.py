"""What a refusal is: one sentence; of a conversion exit status 2, too, and nothing left."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.__main__ import main
from qsjax.errors import QsjaxError

DEEP = json.loads("[" * 50 + "]" * 50)
"""Lists in lists, deeper than any file of ours."""


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


def refusal(work: Callable[..., object], *arguments: object) -> str | None:
    """The sentence with which it is refused; None if it is not."""
    try:
        work(*arguments)
    except QsjaxError as error:
        return str(error)
    return None
