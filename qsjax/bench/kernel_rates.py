"""The Pallas kernels of a small step, each compiled alone with the profiler on.

The profiler aborts over some of XLA's own fusions, so a kernel cannot be profiled inside its step. It unrolls the grid, so the step
must be small. `python -m qsjax.bench.kernel_rates` answers a `RatesRequest`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from pallas_kernels import targets
from pallas_kernels.deviceless import compile_for
from pallas_kernels.estimate import answer
from pallas_kernels.targets import TARGETS
from qsjax.bench.hlo_run import executed
from qsjax.bench.kernel_calls import Call, calls
from qsjax.bench.step_parts import is_kernel
from qsjax.bench.step_program import StepRequest, traced

Profile = tuple[str, str, int, int, str]
"""Block and path of a kernel (as in `qsjax.bench.step_parts.Kernel`), values that it writes, cycles, and why there are none."""
NOT_PROFILED = "it was not asked for"


@dataclass(frozen=True, kw_only=True)
class RatesRequest:
    """Kernels to profile.

    Attributes:
        step: small; its attention slot does nothing.
        only: numbers of the kernels to profile; None is all.
    """

    step: StepRequest
    only: tuple[int, ...] | None = None


def respond(request: RatesRequest) -> list[Profile]:
    """Every different kernel, in the order in which the step calls them."""
    target = TARGETS[request.step.target]
    with targets.assumed(target):
        return [
            _profile(call, target)
            if request.only is None or number in request.only
            else (call.block, call.path, call.elements, 0, NOT_PROFILED)
            for number, call in enumerate(_different(request.step))
        ]


def _different(request: StepRequest) -> Iterator[Call]:
    seen = set()
    for call in calls(traced(request).jaxpr.jaxpr):
        key = (call.block, call.path, call.shapes)
        if key not in seen:
            seen.add(key)
            yield call


def _profile(call: Call, target: targets.Target) -> Profile:
    """The profiler's cycles of a kernel alone; a compiler that refuses one says why."""
    equation = call.equation

    def run(*operands: jax.Array) -> list[jax.Array]:
        return equation.primitive.bind(*operands, **equation.params)

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    cycles, reason = 0, "the compiler wrote no cycles into the program"
    try:
        text = compile_for(target, run, *shapes).as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        reason = f"the compiler failed: {str(error).splitlines()[0][:200]}"
    else:
        steps: list[Any] = [one for one in executed(text) if is_kernel(one.instruction)]
        cycles = sum(one.instruction.profiled for one in steps)
    return call.block, call.path, call.elements, cycles, "" if cycles else reason


if __name__ == "__main__":
    answer(respond)
