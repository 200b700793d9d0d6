"""Store what reports of `qsjax bench step` add to the floors, for `qsjax plan`.

    qsjax bench step --target v5e --frames 61 --height 480 --width 832 --recipe quantsparse-w4a8-d15 --vae --json > v5e.json
    python -m qsjax.bench.overheads v5e.json

replaces the table of the report's TPU in `qsjax/budget/overheads.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from qsjax.budget.overheads import BFLOAT16, FILE, overheads
from qsjax.budget.parts import ENDS
from qsjax.disk import write_atomically
from qsjax.errors import InputError
from qsjax.settings import DENSE

_DIGITS = 4


def table(report: dict[str, Any]) -> dict[str, Any]:
    """The table of a report, as `qsjax.budget.overheads.Overheads` reads it; steps without an estimate are left out.

    Raises:
        InputError: dense steps have no estimate, or a part of some step has none.
    """
    rows, one_pass, size = report["kinds"], report["pass_seconds"], report["size"]
    for kind, row in rows.items():
        if doubts := ", ".join(row.get("doubts", ())):
            raise InputError(
                f"{kind} steps of {report['target']} are not fully estimated ({doubts}); such a report is not stored"
            )
    rows = {kind: row for kind, row in rows.items() if "failure" not in row}
    if missing := {DENSE, BFLOAT16} - rows.keys():
        raise InputError(
            f"{' and '.join(sorted(missing))} steps of {report['target']} have no estimate; such a report is not stored"
        )
    kinds = {
        kind: {
            block: _rounded(overheads(parts, row["floors"].get(block, {}), one_pass))
            for block, parts in row["blocks"].items()
        }
        for kind, row in rows.items()
    }
    assert all(ENDS in blocks for blocks in kinds.values())
    return {
        "libtpu": report["versions"]["libtpu"],
        "size": [size["frames"], size["height"], size["width"]],
        "weights": report["weights"],
        "mask": report["mask"],
        "executed_density": report["executed_density"],
        "cache_bytes": report["cache_bytes"],
        "hidden_size": report["hidden_size"],
        "heads": report["heads"],
        "kinds": kinds,
        "seconds": _rounded({kind: row["seconds"] for kind, row in rows.items()}),
        "decoding": {
            **report["decoding"],
            "cpu_seconds": float(round(report["decoding"]["cpu_seconds"])),
        },
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.{_DIGITS}g}") for name, value in values.items()}


def store(reports: list[Path], file: Path = FILE) -> None:
    """Replace the tables of the reports' targets; others stay.

    Raises:
        InputError: as `table`.
    """
    tables = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for path in reports:
        report = json.loads(path.read_text(encoding="utf-8"))
        tables[report["target"]] = table(report)
    write_atomically(file, (json.dumps(tables, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    try:
        store([Path(name) for name in sys.argv[1:]])
    except InputError as error:
        sys.exit(str(error))
