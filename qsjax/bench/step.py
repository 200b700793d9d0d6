"""A whole sampling run by the TPU's compiler, without a TPU: what a block of each kind costs in a step of each kind.

Pallas kernels with a fixed grid are profiled in a small step and scaled by the size of their result; attention is profiled
case by case, with the lengths of its lists (`qsjax.bench.listed`); everything else has XLA's own estimate in the compiled
step. Nothing is measured, and what overlaps is counted twice.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pallas_kernels.block_sparse_attention.case import AttentionCase
from pallas_kernels.estimate import NoEstimateError, estimate, in_own_process, profiler
from pallas_kernels.targets import Target
from qsjax.bench.listed import ListedCall
from qsjax.bench.step_floor import floors
from qsjax.bench.step_parts import ATTENTION, DOUBLE, ENDS, SINGLE, Kernel
from qsjax.bench.step_subject import BFLOAT16, Subject
from qsjax.budget.steps import executed_density
from qsjax.progress import Progress
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.sample.cache_size import cache_bytes
from qsjax.sample.patterns import pattern_for
from qsjax.settings import DENSE, SPARSE

_TIMEOUT = 1800.0
# 3,072 tokens of video and 1,024 of text: whole tiles of every kernel, and few enough for the profiler, which unrolls grids.
_PROFILED = {"latents": (3, 64, 64), "text_tokens": 1024}


def measure(subject: Subject) -> dict[str, Any]:
    """Every kind of step, by block and part.

    Returns:
        Kind -> `steps`, `blocks` (block -> part -> seconds of one block; of the ends for the whole step), `floors` (block ->
        part -> seconds), `seconds` of a step, `cpu_seconds` of compiling it, and `doubts`, sentences; or `failure`.
    """
    kinds = [*subject.kinds, BFLOAT16]
    estimates = _Estimates(subject.target)
    rows: dict[str, Any] = {}
    with Progress(len(kinds) + 1, "compile", unit="step") as bar:
        rates = _rates(subject)
        bar.advance(case="kernels")
        for kind in kinds:
            try:
                answer = in_own_process(
                    "qsjax.bench.step_program", subject.request(kind), timeout=_TIMEOUT
                )
            except NoEstimateError as error:
                rows[kind] = {"failure": f"no estimate: {error}"}
            else:
                rows[kind] = _row(subject, kind, answer, rates, estimates)
            rows[kind] |= {"steps": subject.kinds.get(kind, subject.plan.steps)}
            bar.advance(case=kind)
    return rows


Rates = dict[tuple[str, str], float]
"""(block, path) of a Pallas kernel -> cycles for each value of its result."""


def _rates(subject: Subject) -> Rates | str:
    """From the kernels of a small dense step with the profiler on; or why there are none."""
    request = subject.request(DENSE, plan=subject.plan.dense, slot="nothing", **_PROFILED)
    try:
        with profiler() as flags:
            answer = in_own_process("qsjax.bench.kernel_rates", request, flags, timeout=_TIMEOUT)
    except NoEstimateError as error:
        return f"kernels were not profiled: {error}"
    cycles: dict[tuple[str, str], float] = defaultdict(float)
    values: dict[tuple[str, str], float] = defaultdict(float)
    for block, path, elements, count in answer:
        cycles[block, path] += count
        values[block, path] += elements
    return {key: count / values[key] for key, count in cycles.items()}


class _Estimates:
    """Seconds of cases of attention, each estimated once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.known: dict[AttentionCase, float | str] = {}

    def seconds(self, cases: Iterable[AttentionCase], doubts: list[str]) -> float:
        """Of all cases; why one has no estimate is added to the doubts."""
        total = 0.0
        for case in cases:
            if case not in self.known:
                try:
                    self.known[case] = estimate(case, self.target, timeout=_TIMEOUT).seconds
                except NoEstimateError as error:
                    self.known[case] = f"attention has no estimate for {case.name}: {error}"
            found = self.known[case]
            if isinstance(found, str):
                doubts.append(found)
            else:
                total += found
        return total


def _row(
    subject: Subject, kind: str, answer: dict[str, Any], rates: Rates | str, estimates: _Estimates
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
            seconds = kernel.calls * _kernel_seconds(kernel, target, rates, doubts)
            parts[kernel.part] = parts.get(kernel.part, 0.0) + seconds
    listed = [ListedCall.of(one) for one in answer["listed"]]
    for block in (DOUBLE, SINGLE):
        calls = sum(k.calls for k in kernels if k.part == ATTENTION and k.block == block)
        cases: list[AttentionCase] = [call.case for call in listed]
        if calls and not listed:
            cases = [subject.full_lists]
        elif calls != len(listed):
            doubts.append(
                f"a {block} block runs {calls:g} kernels of attention, of which {len(listed)} are known"
            )
        blocks[block][ATTENTION] = blocks[block].get(ATTENTION, 0.0) + estimates.seconds(
            cases, doubts
        )
    depth = {DOUBLE: config.num_double_blocks, SINGLE: config.num_single_blocks, ENDS: 1}
    return {
        "blocks": blocks,
        "floors": {block: _floors(subject, kind, block) for block in (DOUBLE, SINGLE)},
        "seconds": sum(depth[block] * sum(parts.values()) for block, parts in blocks.items()),
        "cpu_seconds": answer["cpu_seconds"],
        "doubts": list(dict.fromkeys(doubts)),
    }


def _kernel_seconds(kernel: Kernel, target: Target, rates: Rates | str, doubts: list[str]) -> float:
    """The profiler's cycles for the size of the result; at least the bytes at the bandwidth."""
    least = kernel.bytes / target.bandwidth
    if isinstance(rates, str):
        doubts.append(f"{rates}; they count by their bytes")
        return least
    if (rate := rates.get((kernel.block, kernel.path))) is None:
        doubts.append(
            f"{kernel.path} of a {kernel.block} block was not profiled; it counts by its bytes"
        )
        return least
    return max(least, rate * kernel.elements / target.clock)


def _floors(subject: Subject, kind: str, block: str) -> dict[str, float]:
    config, plan, text = subject.model.dit, subject.plan, subject.size.text_tokens
    shape, density, cached = (1, 0, *subject.latents), 1.0, 0.0
    if plan.sparse is not None and kind not in (DENSE, BFLOAT16):
        cached = cache_bytes(config, plan, shape, text) / config.num_blocks
        if kind == SPARSE:
            density = executed_density(pattern_for(plan.sparse, config, shape, text))
    integers = kind != BFLOAT16 and subject.model.recipe.blocks.activations != UNQUANTIZED
    return floors(
        config, subject.target, tokens=subject.size.tokens, block=block, density=density,
        integers=integers, cached=cached,
    )  # fmt: skip
