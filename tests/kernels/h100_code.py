"""What the CUDA toolchain makes of a kernel for an H100: registers, spills, shared memory, tensor-core instructions."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from pallas_kernels.deviceless import compile_for
from pallas_kernels.targets import TARGETS

H100 = TARGETS["h100"]
SHARED_MEMORY = 232448
"""Bytes that a program may ask for; the compiler does not object to more, the launch would."""


class Code(NamedTuple):
    """Of a kernel, but for the last."""

    registers: int
    spilled: int  # bytes
    shared_memory: int  # bytes
    tensor_cores: set[str]  # names of instructions
    temporary: int  # bytes in the main memory, of the whole program


def compiled(directory: Path, name: str, function: Any, *arguments: Any) -> Code:
    """Compile a program, and read what `ptxas` says of one kernel.

    Args:
        directory: empty, for what the compiler dumps.
        name: of the kernel.
        function, arguments: as in `compile_for`.
    """
    program = compile_for(H100, function, *arguments, options={"xla_dump_to": str(directory)})
    (thunks,) = directory.glob("*thunk_sequence.txt")
    (shared,) = re.findall(rf"{name} grid.*shared_memory: (\d+)", thunks.read_text())
    (ptx,) = (one for one in directory.glob("*.ptx") if f".entry {name}" in one.read_text())
    report = subprocess.run(
        [_ptxas(), "-v", "-arch=sm_90a", ptx, "-o", directory / "kernel.cubin"],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    (registers,) = re.findall(r"Used (\d+) registers", report)
    return Code(
        registers=int(registers),
        spilled=sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        shared_memory=int(shared),
        tensor_cores=set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)\S+", ptx.read_text())),
        temporary=program.memory_analysis().temp_size_in_bytes,
    )


def _ptxas() -> Path:
    spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "bin" / "ptxas"
