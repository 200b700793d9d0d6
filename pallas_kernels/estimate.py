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
from dataclasses import dataclass
from pathlib import Path

from pallas_kernels.deviceless import compile_for
from pallas_kernels.roofline import Case
from pallas_kernels.targets import TARGETS, Target

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
    with tempfile.TemporaryDirectory() as folder:
        profile, result = Path(folder, "profile"), Path(folder, "estimate.json")
        profile.mkdir()
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {_PROFILE_FLAG}={profile}".strip()
        environment = {**os.environ, "LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "pallas_kernels.estimate", target.name, str(result)]
        try:
            run = subprocess.run(
                command, input=pickle.dumps(case), env=environment, capture_output=True,
                timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NoEstimateError(f"the compiler took more than {timeout:g} s") from None
        if run.returncode:
            raise NoEstimateError(_why(run.returncode, run.stderr.decode(errors="replace")))
        report = json.loads(result.read_text(encoding="utf-8"))
    cycles, repeats = report["cycles"], report["repeats"]
    return Estimate(
        cycles,
        repeats,
        sum(cycles.values()) * repeats / target.clock,
        report["traffic"] / target.bandwidth,
    )


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


def _main() -> None:
    """Read a case from stdin, compile it for the named target, and write its cycles to the named file."""
    import resource

    name, result = sys.argv[1:]
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = half if most == resource.RLIM_INFINITY else min(half, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    case, target = pickle.load(sys.stdin.buffer), TARGETS[name]
    program = case.program(target)
    compiled = compile_for(target, program.function, *program.operands)
    report = {
        "cycles": instruction_cycles(compiled.as_text() or ""),
        "repeats": program.repeats,
        "traffic": program.traffic,
    }
    Path(result).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    _main()
