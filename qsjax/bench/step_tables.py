"""The report of `qsjax bench step` as text: a table for each kind of block, and the run."""

from collections.abc import Sequence
from typing import Any

from qsjax.budget.parts import BLOCKS, GLUE, HOST_RATE, PARTS, TRANSFERS

_EXPLANATION = """Everything is an estimate of the TPU's compiler, nothing is measured: kernels by its profiler, the rest by XLA's own cost of each
instruction, without the overlap of copies with computation. Shares are floor over estimate; parts without a floor need not
exist. A floor is products at the peak of the matrix unit, or bytes at the bandwidth. "bf16 dense" is the same run with bfloat16
products and dense attention by our own kernel. Half of the heads want the second order of tokens, where there are two; scores
have a bound in all heads. Text encoders are not compiled here, and the autoencoder only with `--vae`."""
_TRANSFERS = f"""A cache on the host counts as sent at {HOST_RATE / 1e9:.0f} GB/s, assumed, with nothing else going on meanwhile."""


def text(report: dict[str, Any]) -> str:
    """Tables of a report from `qsjax.bench.step_run.bench`."""
    size = report["size"]
    found = ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v)
    lines = [
        f"target {report['target']}, estimated; HunyuanVideo-13B {report['weights']}, mask {report['mask'] or 'none'},"
        f" {size['frames']}x{size['height']}x{size['width']}, {size['tokens']:,} tokens",
        found,
    ]
    if (installed := report["versions"].get("libtpu")) != report["wanted_libtpu"]:
        lines.append(
            f"libtpu {installed} is used; the figures in docs/benchmarks.md are from {report['wanted_libtpu']}:"
            f" pip install libtpu=={report['wanted_libtpu']}"
        )
    kinds = {kind: row for kind, row in report["kinds"].items() if "failure" not in row}
    for kind, row in report["kinds"].items():
        if "failure" in row:
            lines.append(
                f"{kind}: {row['failure']}; another libtpu may do better: pip install libtpu=={report['wanted_libtpu']}"
            )
    for block, count in report["layers"].items():
        lines += [
            "",
            f"one {block} block of {count}, ms, and share of floor",
            *_block(kinds, block),
        ]
    lines += ["", "a step, s", *_steps(kinds)]
    for name, title in (("run", "this run"), ("rival", "bf16 dense")):
        if report[name]:
            lines += ["", f"{title}, s", *_run(report[name])]
    if "ratio" in report:
        lines += [
            "",
            f"{report['ratio']:.2f} times as fast as bf16 dense; steps alone {report['ratio_of_steps']:.2f} times",
        ]
    doubts = dict.fromkeys(doubt for row in kinds.values() for doubt in row["doubts"])
    sent = any(TRANSFERS in row["blocks"][block] for row in kinds.values() for block in BLOCKS)
    explanation = [_EXPLANATION, *([_TRANSFERS] if sent else [])]
    return "\n".join([*lines, *(f"doubt: {doubt}" for doubt in doubts), "", *explanation])


def _block(kinds: dict[str, Any], block: str) -> list[str]:
    rows: list[list[str]] = [["", *(cell for kind in kinds for cell in (kind, "of floor"))]]
    for part in PARTS:
        if any(row["blocks"][block].get(part) for row in kinds.values()):
            cells = [
                _cells(row["blocks"][block].get(part, 0.0), row["floors"][block].get(part))
                for row in kinds.values()
            ]
            rows.append([part, *(cell for pair in cells for cell in pair)])
    sums = [
        (sum(row["blocks"][block].get(part, 0.0) for part in GLUE), None) for row in kinds.values()
    ]
    rows.append(["of these, glue", *(cell for pair in sums for cell in _cells(*pair))])
    whole = [
        (sum(row["blocks"][block].values()), sum(row["floors"][block].values()))
        for row in kinds.values()
    ]
    rows.append(["in all", *(cell for pair in whole for cell in _cells(*pair))])
    return _aligned(rows)


def _cells(seconds: float, floor: float | None) -> tuple[str, str]:
    share = f"{100 * floor / seconds:.0f} %" if floor and seconds else ""
    return f"{1e3 * seconds:.2f}" if seconds else "", share


def _steps(kinds: dict[str, Any]) -> list[str]:
    rows = [["", "steps", "one", "floor", "of floor", "outside of blocks", "compile (CPU)"]]
    for kind, row in kinds.items():
        seconds, floor = row["seconds"], row["floor_seconds"]
        ends = sum(row["blocks"]["ends"].values())
        share = f"{100 * floor / seconds:.0f} %"
        cells = [
            f"{seconds:.2f}",
            f"{floor:.2f}",
            share,
            f"{ends:.3f}",
            f"{row['cpu_seconds']:.0f}",
        ]
        rows.append([kind, str(row["steps"]), *cells])
    return _aligned(rows)


def _run(run: dict[str, Any]) -> list[str]:
    steps = sum(run["steps"].values())
    rows = [[f"{kind} steps", f"{seconds:.1f}", ""] for kind, seconds in run["steps"].items()]
    share = f"floor {run['steps_floor']:.1f}, {100 * run['steps_floor'] / steps:.0f} %"
    rows += [
        ["all steps", f"{steps:.1f}", share],
        ["text encoding", f"{run['text']:.2f}", "stored, scaled by the peak"],
        ["VAE decoding", f"{run['decoding']:.1f}", run["decoding_from"]],
        ["in all", f"{run['seconds']:.1f}", ""],
        [
            "compiling, CPU-seconds",
            f"{run['steps_cpu_seconds'] + run['decoding_cpu_seconds']:.0f}",
            f"{run['steps_cpu_seconds']:.0f} steps, {run['decoding_cpu_seconds']:.0f} VAE ({run['decoding_from'].split(',')[0]})",
        ],
    ]
    return _aligned(rows, left=(0, 2))


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
