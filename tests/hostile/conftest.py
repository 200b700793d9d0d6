"""Every test here is `hostile`; the usual suite runs a part of the cases, `pytest -m hostile` all of them."""

import sys
from pathlib import Path

import pytest

# Small models and files are made there; the folder has the name of our package, and cannot be imported as one.
sys.path.append(str(Path(__file__).parent.parent / "convert"))

SHARE = 8
"""One case in so many is in the usual suite."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all, and those cases that the usual suite leaves out; a test without cases is in it."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for number, item in enumerate(here):
        item.add_marker(pytest.mark.hostile)
        if number % SHARE and hasattr(item, "callspec"):
            item.add_marker(pytest.mark.many)
