"""How many cycles the TPU's compiler counts for a case, without a TPU.

libtpu writes a static profile of every instruction into the compiled program: the bundles of its schedule and a model of
its copies. It is optimistic for programs that memory limits, so it is read together with the bytes that are moved. The
profiler is a debugging aid: it slows compiling down, can take all memory and can abort the process. So it runs in a process
of its own, with a memory limit. libtpu 0.0.42 aborts if a kernel for v6e starts copies of its own, as attention does, and
runs out of memory on XLA's product of int8 and int4; 0.0.52 does neither.
"""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pallas_kernels.deviceless import compile_for
from pallas_kernels.roofline import Case
from pallas_kernels.targets import Target

_PROFILE_FLAG = "--xla_jf_dump_static_llo_profile_to"
_INSTRUCTION = re.compile(
    r'^\s*(?:ROOT )?%(\S+) = .*"bundle_analysis_data":\{[^{}]*?"estimated_cycles":"(\d+)"', re.M
)
# What an abort or an exception writes to stderr, the most specific first.
_REASONS = (r"Static LLO profiling of .*", r".*LLO_CHECK failure.*", r"^[\w.]*(?:Error|Group)\b.*")


class NoEstimateError(RuntimeError):
    """The compiler gave no estimate; the message says why."""


@dataclass(frozen=True)
class Estimate:
    """Static estimate of a call.

    Attributes:
        cycles: of the compiled program, by instruction.
        repeats: cycles of the call over those of that program.
        compiler_seconds: all cycles, at the target's clock.
        memory_seconds: the bytes that the implementation moves, at the target's bandwidth.
    """

    cycles: dict[str, int]
    repeats: float
    compiler_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.compiler_seconds, self.memory_seconds)


def instruction_cycles(text: str) -> dict[str, int]:
    """Estimated cycles of every instruction of a program compiled with the profiler on; a loop's body counts once.

    Args:
        text: of the compiled program, `as_text()`.

    Raises:
        NoEstimateError: the text has no cycles.
    """
    cycles = {name: int(count) for name, count in _INSTRUCTION.findall(text)}
    if not cycles:
        raise NoEstimateError("the compiler wrote no cycles into the program")
    return cycles


def estimable(target: Target) -> bool:
    """Whether the target's compiler can estimate cycles, and its clock is known to turn them into seconds."""
    return target.backend == "tpu" and target.topology is not None and target.clock > 0


def estimate(case: Case, target: Target, *, timeout: float = 900.0) -> Estimate:
    """Compile a case for a TPU in another process, with the profiler on.

    Args:
        case: picklable, from a module that the other process can import.
        target: a TPU.
        timeout: seconds.

    Raises:
        NoEstimateError: the process aborted, failed, or took too long.
    """
    with profiler() as flags:
        report = in_own_process("pallas_kernels.estimate", (target, case), flags, timeout=timeout)
    cycles, repeats = report["cycles"], report["repeats"]
    return Estimate(
        cycles,
        repeats,
        sum(cycles.values()) * repeats / target.clock,
        report["traffic"] / target.bandwidth,
    )


@contextmanager
def profiler() -> Iterator[str]:
    """Flag of libtpu that has it write the static profile into programs; what it leaves in a folder is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"{_PROFILE_FLAG}={folder}"


def in_own_process(module: str, request: object, flags: str = "", *, timeout: float) -> Any:
    """What `python -m module` answers to a request: a compiler that aborts or takes all memory must not take us along.

    Args:
        module: calls `answer` when it runs as a program.
        request: picklable, of types that the other process can import.
        flags: of libtpu.
        timeout: seconds.

    Raises:
        NoEstimateError: the process aborted, failed, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "answer.json")
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()
        environment = {**os.environ, "LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
        try:
            run = subprocess.run(
                [sys.executable, "-m", module, str(result)], input=pickle.dumps(request),
                env=environment, capture_output=True, timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NoEstimateError(f"the compiler took more than {timeout:g} s") from None
        if run.returncode:
            raise NoEstimateError(_why(run.returncode, run.stderr.decode(errors="replace")))
        return json.loads(result.read_text(encoding="utf-8"))


def answer(respond: Callable[[Any], Any]) -> None:
    """In the other process: read the request from stdin, and write the response as JSON to the file that is named.

    At most half of the machine's memory is taken.
    """
    import resource

    (result,) = sys.argv[1:]
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = half if most == resource.RLIM_INFINITY else min(half, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    response = respond(pickle.load(sys.stdin.buffer))
    Path(result).write_text(json.dumps(response), encoding="utf-8")


def _why(status: int, stderr: str) -> str:
    how = (
        f"was ended by {signal.Signals(-status).name}"
        if status < 0
        else f"failed with status {status}"
    )
    for pattern in _REASONS:
        if lines := re.findall(pattern, stderr, re.M):
            return f"the compiler {how}: {lines[-1].strip()[:200]}"
    return f"the compiler {how}"


def _profiled(request: tuple[Target, Case]) -> dict[str, Any]:
    """Cycles by instruction of a case that is compiled with the profiler on."""
    target, case = request
    program = case.program(target)
    compiled = compile_for(target, program.function, *program.operands)
    return {
        "cycles": instruction_cycles(compiled.as_text() or ""),
        "repeats": program.repeats,
        "traffic": program.traffic,
    }


if __name__ == "__main__":
    answer(_profiled)
