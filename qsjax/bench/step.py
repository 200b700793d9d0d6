"""A whole sampling run by the TPU's compiler, without a TPU: what a block of each kind costs in a step of each kind.

Pallas kernels with a fixed grid are profiled in a small step and scaled by the size of their result; attention is profiled
case by case, with the lengths of its lists (`qsjax.bench.listed`); everything else has XLA's own estimate in the compiled
step. Nothing is measured, and what overlaps is counted twice.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pallas_kernels.block_sparse_attention.case import AttentionCase
from pallas_kernels.estimate import NoEstimateError, estimate, in_own_process
from pallas_kernels.targets import Target
from qsjax.bench.listed import ListedCall
from qsjax.bench.rates import Rates
from qsjax.bench.step_parts import Kernel
from qsjax.bench.step_subject import Subject
from qsjax.budget.overheads import BFLOAT16
from qsjax.budget.parts import ATTENTION, DOUBLE, ENDS, SINGLE, TRANSFERS, floors
from qsjax.progress import Progress
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.settings import DENSE, SPARSE

_TIMEOUT = 1800.0
_TOGETHER = 2
"""Processes at a time: each may take gigabytes."""


def measure(subject: Subject) -> dict[str, Any]:
    """Every kind of step, by block and part.

    Returns:
        Kind -> `steps`, `blocks` (block -> part -> seconds of one block; of the ends for the whole step), `floors` (block ->
        part -> seconds), `seconds` of a step, `cpu_seconds` of compiling it, and `doubts`, sentences; or `failure`.
    """
    kinds = [*subject.kinds, BFLOAT16]
    estimates = _Estimates(subject.target)
    rows: dict[str, Any] = {}
    with (
        Progress(len(kinds) + 1, "compile", unit="step") as bar,
        ThreadPoolExecutor(_TOGETHER) as pool,
    ):
        profiled = pool.submit(Rates.of, subject, _TIMEOUT)
        programs = {kind: pool.submit(_program, subject, kind) for kind in kinds}
        rates = profiled.result()
        bar.advance(case="kernels")
        for kind, program in programs.items():
            try:
                answer = program.result()
            except NoEstimateError as error:
                rows[kind] = {"failure": f"no estimate: {error}"}
            else:
                estimates.learn(_listed(subject, answer), pool)
                rows[kind] = _row(subject, kind, answer, rates, estimates)
            rows[kind] |= {"steps": subject.kinds.get(kind, subject.plan.steps)}
            bar.advance(case=kind)
    return rows


def _program(subject: Subject, kind: str) -> dict[str, Any]:
    return in_own_process("qsjax.bench.step_program", subject.request(kind), timeout=_TIMEOUT)


class _Estimates:
    """Seconds of cases of attention, each estimated once; if there is no estimate, why."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.known: dict[AttentionCase, float | str] = {}

    def learn(self, cases: Iterable[AttentionCase], pool: ThreadPoolExecutor) -> None:
        """Estimate the cases that are not known."""
        wanted = [case for case in dict.fromkeys(cases) if case not in self.known]
        self.known |= dict(zip(wanted, pool.map(self._one, wanted), strict=True))

    def _one(self, case: AttentionCase) -> float | str:
        try:
            return estimate(case, self.target, timeout=_TIMEOUT).seconds
        except NoEstimateError as error:
            return f"attention has no estimate for {case.name}: {error}"

    def seconds(self, cases: Iterable[AttentionCase], doubts: list[str]) -> float:
        """Of all cases; why one has no estimate is added to the doubts."""
        found = [self.known[case] for case in cases]
        doubts += [one for one in found if isinstance(one, str)]
        return sum((one for one in found if not isinstance(one, str)), 0.0)


def _listed(subject: Subject, answer: dict[str, Any]) -> list[AttentionCase]:
    """The calls of attention of a layer; a dense one is one call with full lists, where a kernel makes it."""
    listed = [ListedCall.of(one) for one in answer["listed"]]
    kernels = any(kernel["part"] == ATTENTION for kernel in answer["kernels"])
    return [call.case for call in listed] or [subject.full_lists] * kernels


def _row(
    subject: Subject, kind: str, answer: dict[str, Any], rates: Rates, estimates: _Estimates
) -> dict[str, Any]:
    target, config = subject.target, subject.model.dit
    doubts: list[str] = []
    blocks = {
        block: {part: cycles / target.clock for part, cycles in parts.items()}
        for block, parts in answer["blocks"].items()
    }
    kernels = [Kernel(**one) for one in answer["kernels"]]
    for kernel in kernels:
        if kernel.part != ATTENTION:
            parts = blocks[kernel.block]
            seconds = kernel.calls * rates.seconds(kernel, target, doubts)
            parts[kernel.part] = parts.get(kernel.part, 0.0) + seconds
    cases = _listed(subject, answer)
    for block in (DOUBLE, SINGLE):
        calls = sum(k.calls for k in kernels if k.part == ATTENTION and k.block == block)
        if calls != len(cases):
            doubts.append(
                f"a {block} block runs {calls:g} kernels of attention, of which {len(cases)} are known"
            )
        blocks[block][ATTENTION] = blocks[block].get(ATTENTION, 0.0) + estimates.seconds(
            cases, doubts
        )
    least = {block: _floors(subject, kind, block) for block in (DOUBLE, SINGLE)}
    for block, seconds in least.items():
        if TRANSFERS in seconds:  # XLA has no cost for them
            blocks[block][TRANSFERS] = seconds[TRANSFERS]
    depth = {DOUBLE: config.num_double_blocks, SINGLE: config.num_single_blocks, ENDS: 1}
    return {
        "blocks": blocks,
        "floors": least,
        "seconds": sum(depth[block] * sum(parts.values()) for block, parts in blocks.items()),
        "cpu_seconds": answer["cpu_seconds"],
        "doubts": list(dict.fromkeys(doubts)),
    }


def _floors(subject: Subject, kind: str, block: str) -> dict[str, float]:
    config, sparse = subject.model.dit, subject.plan.sparse
    density, cached = subject.lists if kind not in (DENSE, BFLOAT16) else (1.0, 0)
    integers = kind != BFLOAT16 and subject.model.recipe.blocks.activations != UNQUANTIZED
    return floors(
        config,
        subject.target,
        tokens=subject.size.tokens,
        block=block,
        pairs=(density if kind == SPARSE else 1.0) * subject.size.tokens**2,
        integers=integers,
        cached=cached / config.num_blocks,
        on_host=sparse is not None and sparse.residual.place == "host",
    )
