"""The report of the kernel benchmark as text: a table an operation."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

_EXPLANATION = {
    "measured": "Times are measured on this device. On a CPU the peak is that of float32, which products of int8 may pass.",
    "estimated": "Times are estimates of the compiler, not measurements: it counts the cycles of its own schedule, and is"
    " optimistic where\nmemory decides. An estimate is the larger of those cycles and of the bytes that the kernel moves."
    " Attention is profiled on 8 blocks\nof queries of one head, its loop unpredicated and as long as the mean list, and"
    " scaled by steps; copies that put heads before tokens\nare left out. Its executed density counts listed blocks.",
}


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} us" if seconds < 0.01 else f"{1e3 * seconds:,.1f} ms"


def _share(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "case": ("case", str),
    "implementation": ("by", str),
    "floor_operations": ("Gop", lambda value: f"{value / 1e9:,.1f}"),
    "floor_unit": ("type", str),
    "floor_bytes": ("MB", lambda value: f"{value / 1e6:,.1f}"),
    "floor_seconds": ("floor", _time),
    "floor_bound": ("bound", str),
    "executed_density": ("density", lambda value: f"{100 * value:.1f} %"),
    "kernel_steps": ("steps", lambda value: f"{value:,}"),
    "measured_seconds": ("measured", _time),
    "estimated_compiler_seconds": ("schedule (est.)", _time),
    "estimated_memory_seconds": ("traffic (est.)", _time),
    "estimated_seconds": ("estimate", _time),
    "share_of_floor": ("of floor", _share),
    "ratio_to_full_lists": ("to full", lambda value: f"{value:.3f}"),
    "dense_seconds": ("dense", _time),
    "speedup_over_dense": ("speed-up", lambda value: f"{value:.2f}"),
    "max_difference": ("difference", lambda value: f"{value:.1e}"),
    "dense_form": ("fastest dense form", str),
    "failure": ("", str),
}


def text(report: dict[str, Any]) -> str:
    """Peaks and versions, a table for every operation, and what the figures are."""
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v)
    peaks = ", ".join(
        f"{name} {rate / 1e12:,.4g} T/s"
        for name, rate in report["peak_operations_per_second"].items()
    )
    lines = [
        f"target {report['target']}, {report['method']}; hardware: {report['hardware']}",
        f"peaks ({report['peaks_from']}): {peaks}, memory {report['peak_bytes_per_second'] / 1e9:,.4g} GB/s",
        versions,
        "",
    ]
    for operation, rows in groupby(report["rows"], key=lambda row: row["operation"]):
        lines += [operation, *_table(list(rows)), ""]
    return "\n".join([*lines, _EXPLANATION[report["method"]]])


def _table(rows: list[dict[str, Any]]) -> list[str]:
    keys = [key for key in _COLUMNS if any(key in row for row in rows)]
    cells = [[_COLUMNS[key][0] for key in keys]]
    cells += [[_COLUMNS[key][1](row[key]) if key in row else "" for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    written = {"case", "implementation", "floor_unit", "floor_bound", "dense_form", "failure"}
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if key in written else cell.rjust(width)
            for key, cell, width in zip(keys, line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]
