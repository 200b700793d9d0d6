"""The kernels against the floor: measured where the device is here, else estimated by its compiler."""

import os
import platform
from functools import partial
from typing import Any

import jax

from pallas_kernels import deviceless, targets
from pallas_kernels.block_sparse_attention import bench as attention_bench
from pallas_kernels.estimate import estimable
from pallas_kernels.merge_heads import bench as merge_bench
from pallas_kernels.quantize_tokens import bench as tokens_bench
from pallas_kernels.quantized_matmul import bench as matmul_bench
from pallas_kernels.roofline import Peaks
from pallas_kernels.rotary_heads import bench as rotary_bench
from pallas_kernels.targets import TARGETS, Target
from qsjax.bench.kernel_rows import estimated, measured, rows
from qsjax.bench.timing import measured_peaks
from qsjax.errors import InputError
from qsjax.versions import KERNELS, versions

OPERATIONS = {
    "quantized_matmul": matmul_bench.CASES,
    "quantize_tokens": tokens_bench.CASES,
    "rotary_heads": rotary_bench.CASES,
    "merge_heads": merge_bench.CASES,
    "block_sparse_attention": attention_bench.CASES,
}
"""Operation -> backend -> cases."""


def bench(target: str | None, *, pairs: int) -> dict[str, Any]:
    """Every case of a target.

    Args:
        target: name in `pallas_kernels.targets.TARGETS`; None is the default device's.
        pairs: measurements of each, of which the median counts; estimates need one.

    Returns:
        `method` is "measured" or "estimated"; `rows` has one entry a case, from `floor` and `measured` or `estimated`,
        in seconds, bytes and operations; peaks, hardware and versions.

    Raises:
        InputError: the target is unknown, or neither here nor to be estimated.
    """
    chosen, method = choose(target)
    cases = [(name, case) for name, by in OPERATIONS.items() for case in by[chosen.backend]]
    peaks = measured_peaks() if chosen.backend == "cpu" else Peaks.of(chosen)
    evaluate = (
        partial(measured, pairs=pairs) if method == "measured" else partial(estimated, chosen)
    )
    return report(chosen, method, peaks, rows(cases, peaks, evaluate, label=method))


def choose(name: str | None) -> tuple[Target, str]:
    """The target, and how it is judged: "measured" or "estimated".

    Raises:
        InputError: the target is unknown, or neither here nor to be estimated.
    """
    here = targets.current()
    known = ", ".join(one for one in TARGETS if one != "interpret")
    if name is None:
        if here.name not in TARGETS:
            raise InputError(
                f"the peaks of the default device, {here.name}, are not known; choose a `target` of {known}"
            )
        return here, "measured"
    if name not in TARGETS or name == "interpret":
        raise InputError(f"`target={name!r}`: there is no such target; choose one of {known}")
    target = TARGETS[name]
    if target == here:
        return here, "measured"
    if not estimable(target):
        able = ", ".join(one.name for one in TARGETS.values() if estimable(one))
        raise InputError(
            f"`target={name!r}`: the default device is {here.name}, and only {able} can be estimated without one;"
            f" run it where jax's default device is a {name}"
        )
    if reason := deviceless.missing(target):
        raise InputError(
            f"`target={name!r}`: the default device is {here.name}, and the compiler that estimates is missing; {reason}"
        )
    return target, "estimated"


def report(target: Target, method: str, peaks: Peaks, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All of it, as plain data; sparse attention is also compared to full lists in the same kernel."""
    key = "measured_seconds" if method == "measured" else "estimated_seconds"
    full = [row for row in rows if row["case"].startswith("full lists") and key in row]
    for row in rows:
        if full and row["operation"] == "block_sparse_attention" and key in row:
            row["ratio_to_full_lists"] = row[key] / full[0][key]
    return {
        "target": target.name,
        "method": method,
        "hardware": _hardware()
        if method == "measured"
        else f"none; compiled for {target.topology}",
        "clock_hertz": target.clock or None,
        "peak_operations_per_second": dict(peaks.operations),
        "peak_bytes_per_second": peaks.bandwidth,
        "peaks_from": peaks.source,
        "versions": versions(KERNELS),
        "rows": rows,
    }


def _hardware() -> str:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return f"{jax.device_count()} x {device.device_kind}"
