"""The notebooks' cells."""

import json
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent.parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


class Cell(NamedTuple):
    kind: str
    tags: list
    source: str


def of_notebook(name):
    """Cells of the .ipynb."""
    return [
        Cell(cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"]))
        for cell in notebook(name)["cells"]
    ]


def notebook(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
