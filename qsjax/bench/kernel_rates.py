"""The Pallas kernels of a small step, each compiled alone with the profiler on.

The profiler aborts over some of XLA's own fusions, so a kernel cannot be profiled inside its step. It unrolls the grid, so the step
must be small. `python -m qsjax.bench.kernel_rates` answers a `StepRequest` whose attention slot does nothing.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import jax

from pallas_kernels import targets
from pallas_kernels.deviceless import compile_for
from pallas_kernels.estimate import answer
from pallas_kernels.targets import TARGETS
from qsjax.bench.hlo_run import executed
from qsjax.bench.step_parts import ENDS, block_of, is_kernel, path_of
from qsjax.bench.step_program import StepRequest, traced


def respond(request: StepRequest) -> list[tuple[str, str, int, int]]:
    """For each kernel its block and path (as `qsjax.bench.step_parts.Kernel`), the values in its largest result, and its cycles."""
    target, found = TARGETS[request.target], {}
    with targets.assumed(target):
        for op_name, call in kernels(traced(request).jaxpr.jaxpr):
            block, path = block_of(op_name) or ENDS, path_of(op_name)
            shapes = [variable.aval for variable in call.invars]
            results = max(prod(variable.aval.shape) for variable in call.outvars)
            key = (block, path, str(shapes))
            if key not in found:
                found[key] = (block, path, results, _cycles(call, target))
    return list(found.values())


def kernels(jaxpr: Any, scopes: str = "") -> Iterator[tuple[str, Any]]:
    """Every call of a Pallas kernel in a jaxpr, with the path of its scopes and its name.

    Args:
        jaxpr: `jax.extend.core.Jaxpr`.
        scopes: those around it.
    """
    for equation in jaxpr.eqns:
        path = "/".join(filter(None, (scopes, str(equation.source_info.name_stack))))
        if equation.primitive.name == "pallas_call":
            name = equation.params.get("name") or "kernel"
            yield (path if path.split("/")[-1] == name else f"{path}/{name}"), equation
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)  # a closed one has it inside
                if hasattr(inner, "eqns"):
                    yield from kernels(inner, path)


def _cycles(call: Any, target: targets.Target) -> int:
    """The profiler's cycles of a kernel alone."""

    def run(*operands: jax.Array) -> list[jax.Array]:
        return call.primitive.bind(*operands, **call.params)

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in call.invars]
    text = compile_for(target, run, *shapes).as_text() or ""
    return sum(step.instruction.profiled for step in executed(text) if is_kernel(step.instruction))


if __name__ == "__main__":
    answer(respond)
