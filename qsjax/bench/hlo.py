"""The instructions of a compiled program, read from its text (optimized HLO), and what each costs.

XLA for TPU writes its own estimate, in cycles, into the backend config of most instructions. A Pallas kernel has none
unless the program was compiled with the profiler on (`pallas_kernels.estimate`). Everything here is a pure function of text.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$", re.DOTALL)
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_BUNDLES = re.compile(r'"bundle_analysis_data":\{[^{}]*?\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_OPERANDS = re.compile(r"\boperand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}")
_FRAME = re.compile(r"\bstack_frame_id=(\d+)")
_BITS = {"pred": 8, "bf16": 16}


class Instruction(NamedTuple):
    """One instruction of the text.

    Attributes:
        name: unique in the program.
        opcode: as "fusion", "copy", "custom-call".
        op_name: the path of `jax.named_scope`s and primitives that it came from; "" if the compiler made it.
        result: text of the result's type.
        operands: names of the operands.
        cycles: XLA's estimate, 0 if it has none.
        profiled: the profiler's, 0 if it has none.
        text: everything after the opcode.
    """

    name: str
    opcode: str
    op_name: str
    result: str
    operands: tuple[str, ...]
    cycles: int
    profiled: int
    text: str

    @property
    def frame(self) -> int:
        """Its entry in the text's table of stack frames (`qsjax.bench.hlo_sources`); 0 if it has none."""
        match = _FRAME.search(self.text)
        return int(match[1]) if match else 0

    @property
    def operand_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of a custom call that fixes the layout of its operands, as kernels do; else empty."""
        match = _OPERANDS.search(self.text)
        shapes = _SHAPE.findall(match[1]) if match else ()
        return tuple(tuple(int(size) for size in sizes.split(",") if size) for _, sizes in shapes)

    @property
    def called(self) -> dict[str, str]:
        """Computations by role: "body", "condition", "calls", ..., "branch 0", ..."""
        roles = {role: name for role, name in _CALLED.findall(self.text)}
        if match := _BRANCHES.search(self.text):
            names = [name.strip().lstrip("%") for name in match[1].split(",")]
            roles |= {f"branch {n}": name for n, name in enumerate(names)}
        return roles


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Computations by name, and the name of the entry.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, lines = "", None
    pending: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match[2], [])
            pending = []
            entry = match[2] if match[1] else entry
        elif lines is not None and line.startswith("}"):
            lines += _instructions(pending)
            lines = None
        elif lines is not None:
            # A kernel's metadata may contain a newline: what is no instruction of its own continues the last one.
            if pending and not _INSTRUCTION.match(line):
                pending[-1] += "\n" + line
            else:
                pending.append(line)
    if not entry:
        raise ValueError("the text has no ENTRY computation: it is no HLO module")
    return computations, entry


def _instructions(lines: list[str]) -> Iterator[Instruction]:
    for line in lines:
        if not (match := _INSTRUCTION.match(line)):
            continue
        _, name, result, opcode, rest = match.groups()
        profiled = _BUNDLES.search(rest)
        own = _CYCLES.search(_BUNDLES.sub("", rest))
        op_name = re.search(r'\bop_name="([^"]*)"', rest)
        arguments = rest[: _closing(rest)]
        yield Instruction(
            name,
            opcode,
            op_name[1] if op_name else "",
            result,
            tuple(re.findall(r"%([\w.\-]+)", arguments)),
            int(own[1]) if own else 0,
            int(cycles[1]) if profiled and (cycles := _CYCLES.search(profiled[0])) else 0,
            rest,
        )


def _closing(text: str) -> int:
    """Where the parenthesis closes that was opened before the text."""
    depth = 1
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return position
    return len(text)


def elements(result: str) -> int:
    """Values in the largest array of a type, as in "(bf16[4,8]{1,0}, f32[4])": 32."""
    return max((_count(sizes) for _, sizes in _SHAPE.findall(result)), default=0)


def bytes_of(result: str) -> float:
    """Bytes of all arrays of a type, without the padding of their layout."""
    return sum(_bits(dtype) * _count(sizes) / 8 for dtype, sizes in _SHAPE.findall(result))


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return _BITS.get(dtype) or (int(digits[0]) if digits else 0)


def _count(sizes: str) -> int:
    return prod(int(size) for size in sizes.split(",") if size)
