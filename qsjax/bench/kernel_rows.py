"""The rows of the kernel benchmark: the floor of a case, and its time, measured or estimated."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from pallas_kernels.block_sparse_attention.case import AttentionCase
from pallas_kernels.estimate import NoEstimateError, estimate
from pallas_kernels.roofline import Case, Peaks
from pallas_kernels.targets import Target
from qsjax.bench.attention import against_dense
from qsjax.bench.timing import median_seconds
from qsjax.progress import Progress


def rows(
    cases: Iterable[tuple[str, Case]],
    peaks: Peaks,
    evaluate: Callable[[Any], dict[str, Any]],
    *,
    label: str,
) -> list[dict[str, Any]]:
    """Floor and time of every case.

    Args:
        cases: with the names of their operations.
        peaks: that the floor follows from.
        evaluate: `measured` or `estimated`, of a case; returns its figures, or `failure`, a sentence.
        label: of the progress bar.
    """
    cases, results = list(cases), []
    with Progress(len(cases), label, unit="case") as bar:
        for operation, case in cases:
            row: dict[str, Any] = {
                "operation": operation,
                "case": case.name,
                "implementation": case.implementation,
                **floor(case, peaks),
                **evaluate(case),
            }
            time = row.get("measured_seconds") or row.get("estimated_seconds")
            if time:
                row["share_of_floor"] = row["floor_seconds"] / time
            results.append(row)
            bar.advance(case=case.name)
    return results


def floor(case: Case, peaks: Peaks) -> dict[str, Any]:
    """The least work of a case, and the least time for it; for attention also how much of it is listed."""
    work = case.work
    figures = {
        "floor_operations": work.operations,
        "floor_unit": work.unit,
        "floor_bytes": work.bytes,
        "floor_seconds": work.seconds(peaks),
        "floor_bound": work.bound(peaks),
    }
    if isinstance(case, AttentionCase):
        figures["executed_density"] = case.executed_density
    return figures


def measured(case: Case, *, pairs: int) -> dict[str, Any]:
    """Median seconds of a case on the default device; a case that does not run there says why."""
    try:
        if isinstance(case, AttentionCase) and case.implementation == "xla":
            return against_dense(case, pairs=pairs)
        operands = case.operands()
        call = jax.jit(case.call(case.implementation))
        return {"measured_seconds": median_seconds(lambda: call(*operands), samples=pairs)}
    except RuntimeError as error:
        text = " ".join(str(error).split())
        return {"failure": f"not measured: {text[:200]}"}


def estimated(target: Target, case: Case) -> dict[str, Any]:
    """The compiler's seconds, those of the memory traffic, and the larger of both; or why there is no estimate."""
    figures: dict[str, Any] = {}
    if isinstance(case, AttentionCase):
        figures["kernel_steps"] = case.steps(target)
    try:
        estimated_time = estimate(case, target)
    except NoEstimateError as error:
        return {**figures, "failure": f"no estimate: {error}"}
    return {
        **figures,
        "estimated_cycles": round(sum(estimated_time.cycles.values()) * estimated_time.repeats),
        "estimated_compiler_seconds": estimated_time.compiler_seconds,
        "estimated_memory_seconds": estimated_time.memory_seconds,
        "estimated_seconds": estimated_time.seconds,
    }
