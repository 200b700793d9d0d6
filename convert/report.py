"""What a conversion did, for people and for machines."""

from typing import Any

from convert.containers.listing import first_few
from qsjax.checkpoint import Manifest
from qsjax.units import shown_bytes
from qsjax.untrusted import shown

_SOURCE: dict[str, Any] = {
    "container": "unknown", "layout": "unknown", "prefix": "", "used": 0, "bytes": 0, "ignored": [],
}  # fmt: skip
"""What a manifest that does not say it has."""
_COLUMNS = (
    "component", "container", "layout", "tensors", "parameters", "read", "written", "ignored", "seconds",
)  # fmt: skip


def describe(manifest: Manifest) -> dict[str, Any]:
    """The report as plain data: per component what was read and written, and the peak memory in bytes."""
    components = {
        name: {
            **_SOURCE,
            **component.source,
            "parameters": component.parameters,
            "bytes_written": component.bytes,
            "dtypes": sorted({spec["dtype"] for _, _, spec in manifest.leaves(name)}),
            "items": len(component.items),
            **(
                {"recipe": component.recipe, "method": component.method}
                if component.recipe is not None
                else {}
            ),
            **({} if component.storage is None else {"storage": component.storage}),
            "seconds": component.seconds,
        }
        for name, component in manifest.components.items()
    }
    return {
        "checkpoint": str(manifest.directory),
        "format_version": manifest.data["format_version"],
        "components": components,
        "files": sorted(manifest.files),
        "peak_memory_bytes": manifest.data.get("peak_memory_bytes", 0),
    }


def as_text(report: dict[str, Any]) -> str:
    """The report as a table, and below it every tensor that was left out, by pattern where there are many."""
    lines = [_COLUMNS]
    for name, part in report["components"].items():
        prefix = f" ({_printable(part['prefix'])})" if part["prefix"] else ""
        lines.append(
            (
                name,
                _printable(part["container"]),
                _printable(part["layout"]) + prefix,
                str(part["used"]),
                f"{part['parameters']:,}",
                shown_bytes(part["bytes"]),
                f"{shown_bytes(part['bytes_written'])} {'/'.join(part['dtypes'])}",
                str(len(part["ignored"])),
                f"{part['seconds']:.1f}",
            )
        )
    widths = [max(len(line[k]) for line in lines) for k in range(len(_COLUMNS))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    for name, part in report["components"].items():
        if part["ignored"]:
            text.append(f"not used by {name}: {first_few(_folded(part['ignored']), 40)}")
        if part.get("lora"):
            text.append(f"{name} has merged: {first_few(map(_lora, part['lora']), 40)}")
        if "recipe" in part:
            text.append(
                f"{name} is quantized: {part['method']}, recipe {_printable(str(part['recipe'].get('name')))}"
            )
    text.append(
        f"{report['checkpoint']}: complete, peak memory {shown_bytes(report['peak_memory_bytes'])}"
    )
    return "\n".join(text)


def _folded(names: list[str]) -> list[str]:
    """Names with the same first parts as one pattern: "layers.30.* (9)"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        indexed = [k for k, part in enumerate(parts) if part.isdecimal()]
        depth = indexed[0] + 1 if indexed and "vision" not in name else min(2, len(parts) - 1)
        groups.setdefault(".".join(parts[:depth]), []).append(name)
    return [
        _printable(members[0]) if len(members) == 1 else f"{_printable(group)}.* ({len(members)})"
        for group, members in groups.items()
    ]


def _lora(record: object) -> str:
    """A LoRA file and its strength, as a manifest says it."""
    values = record if isinstance(record, dict) else {}
    return f"{_printable(str(values.get('name')))} (strength {values.get('strength')})"


def _printable(name: str) -> str:
    """A name of a stranger's for the terminal."""
    return name if name.isprintable() and len(name) <= 200 else shown(name, 200)
