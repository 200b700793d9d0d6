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
    permutations: int  # of bytes, instructions
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
    text = ptx.read_text()
    temporary = program.memory_analysis().temp_size_in_bytes
    return Code(*_report(_ptxas(), text), int(shared), *_instructions(text), temporary)


def triton_compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], *, warps: int, stages: int
) -> Code:
    """Compile a `triton.jit` function without jax, and read the same of it.

    Args:
        kernel: the function.
        types: of its arguments, Triton's names, pointers aligned to 16 bytes.
        constants: its constant arguments.
        warps, stages: options of the compiler.
    """
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(types) + list(constants)
    source = ASTSource(
        kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(types))},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    built = triton_compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = built.asm["ptx"]
    bundled = importlib.util.find_spec("triton")
    assert bundled is not None
    assert bundled.origin
    ptxas = Path(bundled.origin).parent / "backends/nvidia/bin/ptxas-blackwell"
    report = _report(ptxas, ptx)
    return Code(*report, built.metadata.shared, *_instructions(ptx), 0)


def _ptxas() -> Path:
    spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "bin" / "ptxas"


def _report(ptxas: Path, ptx: str) -> tuple[int, int]:
    """Registers, and bytes spilled."""
    report = subprocess.run(
        [ptxas, "-v", "-arch=sm_90a", "-", "-o", "/dev/null"],
        check=True, capture_output=True, text=True, input=ptx,
    ).stderr  # fmt: skip
    (registers,) = re.findall(r"Used (\d+) registers", report)
    return int(registers), sum(map(int, re.findall(r"(\d+) bytes spill", report)))


def _instructions(ptx: str) -> tuple[set[str], int]:
    """Those of tensor cores, and how many permute bytes."""
    return set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)\S+", ptx)), ptx.count("prmt.")
