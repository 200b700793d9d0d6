"""A plan's report as text tables. Columns and headings of estimates say "estimate"."""

from collections.abc import Sequence
from typing import Any


def text(report: dict[str, Any]) -> str:
    """The tables of a report from `qsjax.budget.report.make_report`."""
    sections = [_storage, _operations, _kinds, _run_time, _sampling, _calibration]
    if "compiled" in report:
        sections.append(_compiled)
    return "\n\n".join("\n".join(section(report)) for section in sections)


def _storage(report: dict[str, Any]) -> list[str]:
    whole = report["weight_bytes"]
    lines = [
        f"{report['model']}, recipe {report['recipe']}: transformer {_gb(whole)} = {whole:,} bytes,"
        f" {report['times_smaller']:.2f} times smaller than bf16 ({_gb(report['bf16_bytes'])})"
    ]
    groups = [(name, _gb(size)) for name, size in report["weight_bytes_by_group"].items()]
    parts = [(name, _gb(size)) for name, size in report["weight_bytes_by_part"].items()]
    rows = [
        (*group, *part)
        for group, part in zip(groups, [*parts, ("", "")], strict=True)  # five groups, four parts
    ]
    lines += _table(("what is stored", "size", "where", "size"), rows, left=(0, 2))
    return [
        *lines,
        f"resident while sampling {_gb(report['resident_bytes'])}: without the blocks' modulation weights, which a table of"
        f" {_gb(report['modulation_table_bytes'])} for {report['steps']} steps replaces",
    ]


def _operations(report: dict[str, Any]) -> list[str]:
    size, per_step, total = report["size"], report["flops_per_step"], report["flops_all_steps"]
    sparse = f"attention at density {report['density']:g}"
    names = {
        "linears": "linear layers of blocks",
        "attention": "attention, dense",
        "attention_at_density": sparse,
        "rest": "rest",
        "total": "total, dense",
        "total_at_density": f"total at density {report['density']:g}",
    }
    guided = "" if report["evaluations"] == report["steps"] else "2 x "
    rows = [(names[key], _flop(count), _flop(total[key])) for key, count in per_step.items()]
    return [
        f"video {_size(size)}: {size['video_tokens']:,} video + {size['text_tokens']:,} text tokens",
        *_table(("operations", "a step", f"{guided}{report['steps']} steps"), rows),
        f"linear layers are {_share(report['linear_share'])} of a dense step,"
        f" {_share(report['linear_share_at_density'])} at density {report['density']:g}",
    ]


def _kinds(report: dict[str, Any]) -> list[str]:
    kinds = report["steps_by_kind"]
    names = list(next(iter(kinds.values()))["floor_seconds"])
    rows = [
        (
            kind,
            str(row["steps"]),
            _share(row["executed_density"]),
            _flop(row["flops"]),
            _gb(row["bytes"]),
            *(f"{row['floor_seconds'][name]:.2f} s" for name in names),
        )
        for kind, row in kinds.items()
    ]
    cached = max(row["cache_bytes"] for row in kinds.values())
    heads = ("step", "of them", "density", "operations", "bytes", *(f"floor {n}" for n in names))
    return [
        "steps by kind; the floor is an estimate: products at the peaks, or bytes at the bandwidth, whichever is longer",
        *_table(heads, rows),
        *([f"lists and residual cache of all layers: {_gb(cached)}"] if cached else []),
    ]


def _run_time(report: dict[str, Any]) -> list[str]:
    found = report["run_time_estimate"]
    known = {name: row for name, row in found.items() if "missing" not in row}
    lines = []
    if known:
        kinds = list(next(iter(known.values()))["step_seconds"])
        rows = [
            (
                name,
                *(f"{row['step_seconds'][kind]:.2f} s" for kind in kinds),
                f"{sum(row['steps_seconds'].values()):,.0f} s",
                f"{row['text_seconds']:.2f} s",
                f"{row['decoding_seconds']:.1f} s",
                f"{row['seconds']:,.0f} s",
                f"{row['bf16_dense_seconds']:,.0f} s",
                f"{row['times_as_fast']:.2f} times",
            )
            for name, row in known.items()
        ]
        heads = (
            "device",
            *kinds,
            "all steps",
            "text",
            "decoding",
            "run",
            "bf16 dense run",
            "as fast",
        )
        versions = ", ".join(dict.fromkeys(row["libtpu"] for row in known.values()))
        lines = [
            f"the run's time, an estimate (libtpu {versions}'s of qsjax bench step, scaled to this run; nothing was measured)",
            *_table(heads, rows),
            "not counted: loading, compiling, the host's work, what several chips send to each other, steps that are skipped",
        ]
    missing: dict[str, list[str]] = {}
    for name, row in found.items():
        if "missing" in row:
            missing.setdefault(row["missing"], []).append(name)
    return lines + [f"no time for {', '.join(names)}: {why}" for why, names in missing.items()]


def _compiled(report: dict[str, Any]) -> list[str]:
    rows = [
        (
            kind,
            *(_gb(step[f"{what}_bytes"]) for what in ("peak", "argument", "temporary", "host")),
            *(f"{step[name]:.0f} s" for name in ("trace_seconds", "seconds")),
            _about(step["peak_bytes_estimate"]),
        )
        for kind, step in report["compiled"].items()
    ]
    heads = (
        *(
            "compiled step",
            "peak",
            "arguments",
            "temporaries",
            "on the host",
            "traced in",
            "compiled in",
        ),
        "peak (estimate)",
    )
    return ["the compiler's count; arguments are weights, cache and tables", *_table(heads, rows)]


def _sampling(report: dict[str, Any]) -> list[str]:
    plan = report["sampling"]
    rows = [
        (*_device(row), row["largest_stage"], "; ".join(row["fits_with"]))
        for row in plan["devices"]
    ]
    stages = [
        (name, _about(sum(parts.values())), _names(parts)) for name, parts in plan["stages"].items()
    ]
    return [
        f"sampling, one stage after the other, as on {plan['devices'][0]['device']}",
        *_table(("stage", "needed (estimate)", "of it (estimate)"), stages, left=(0, 2)),
        *_table((*_DEVICE, "by the", "fits with"), rows, left=(0, 4, 5)),
    ]


def _calibration(report: dict[str, Any]) -> list[str]:
    plan = report["calibration"]
    methods, devices = plan["methods"], [row["device"] for row in plan["devices"]]
    names = [row["method"] for row in methods]
    passes = dict.fromkeys(name for row in methods for name in row["flops_by_pass"])
    operations = [
        (name, *(_flop_or_none(row["flops_by_pass"].get(name, 0)) for row in methods))
        for name in passes
    ]
    operations.append(("all", *(_flop(row["flops"]) for row in methods)))
    hours = [
        (f"hours on {name} (estimate)", *(_hours(row["hours_estimate"][name]) for row in methods))
        for name in devices
    ]
    disk = (
        "on disk, beside checkpoints",
        *(_gb(sum(row["disk_bytes"].values())) for row in methods),
    )
    memory = [
        (
            *_device(row),
            row["largest_stage"],
            _about(row["sampling_bytes_estimate"]),
            "yes" if row["sampling_fits_estimate"] else "no",
        )
        for row in plan["devices"]
    ]
    stages = [
        (name, _about(sum(parts.values())), _names(parts)) for name, parts in plan["stages"].items()
    ]
    tuned = (
        f", {plan['tune_steps']} steps of tuning x {plan['tune_batch']} moments"
        if plan["tune_steps"]
        else ""
    )
    trained = (
        f", {plan['blocks']} blocks x {plan['steps_a_block']} steps"
        if plan["steps_a_block"]
        else ""
    )
    lines = [
        f"calibration at {_size(plan['size'])}: {plan['captions']} captions of {plan['steps']} steps,"
        f" {plan['samples']} samples{trained}{tuned}",
        *_table(("pass", *names), [*operations, *hours, disk]),
        f"hours assume {_share(plan['assumed_share_of_peak'])} of the bf16 peak, sampling the captions included",
    ]
    if not memory:
        return lines
    heads = (*_DEVICE, "by the", "sampling needs (estimate)", "fits (estimate)")
    return [
        *lines,
        *_table(heads, memory, left=(0, 4)),
        "sampling is the float model's; where it does not fit, another device makes the samples",
        *_table(
            (f"stage, on {devices[0]}", "needed (estimate)", "of it (estimate)"),
            stages,
            left=(0, 2),
        ),
    ]


_DEVICE = ("device", "memory", "needed (estimate)", "fits (estimate)")


def _device(row: dict[str, Any]) -> tuple[str, ...]:
    fits = "yes" if row["fits_estimate"] else "no"
    return row["device"], _about(row["memory_bytes"]), _about(row["bytes_estimate"]), fits


def _names(taken: dict[str, int]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {_about(v)}" for k, v in taken.items())


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)
) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *rows)
    ]


def _size(size: dict[str, int]) -> str:
    return f"{size['frames']}x{size['height']}x{size['width']}"


def _gb(count: int) -> str:
    return f"{count / 1e9:,.3f} GB" if count >= 1e8 else f"{count / 1e6:,.3f} MB"


def _about(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _flop(count: int) -> str:
    for scale, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count / 1e9:,.3f} GFLOP"


def _flop_or_none(count: int) -> str:
    return _flop(count) if count else "-"


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.01 else f"{hours:.1g}"


def _share(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
