"""What the cycles of a step are spent on: every instruction of its compiled text is given a block and a part.

The block is a `jax.named_scope` of the transformer. The part follows from the kernel's name, from the Python file that the
instruction comes from, or from what it does, in this order; what fits nothing is "rest", so that nothing is lost when code moves.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from qsjax.bench.hlo import Instruction, elements
from qsjax.bench.hlo_run import Executed, executed
from qsjax.bench.hlo_sources import Source, sources
from qsjax.budget.parts import (
    ATTENTION,
    BLOCKS,
    CACHE,
    DOUBLE,
    ENDS,
    LOW_RANK,
    ORDERS,
    PACKING,
    PRODUCTS,
    REST,
    ROPE,
    SINGLE,
    SLICES,
    TOKENS,
)

_SCOPES = {"double_block": DOUBLE, "single_block": SINGLE}
_KERNELS = {
    "attention": ATTENTION,
    "matmul": PRODUCTS,
    "quantize": TOKENS,
    "rope": ROPE,
    "rotary": ROPE,
    "norm": ROPE,
    "merge": ORDERS,
}
# Most specific first: the first file, or folder, of this list among an instruction's callers decides.
_FILES = {
    "lowrank.py": LOW_RANK,
    "store.py": PACKING,
    "absmax.py": PACKING,
    "state.py": CACHE,
    "cache.py": CACHE,
    "merge_heads": ORDERS,
    "softmax.py": ROPE,  # lengths of queries and keys
    "rotary_heads": ROPE,
    "rope.py": ROPE,
    "norms.py": ROPE,
    "pattern.py": ORDERS,
    "layout.py": ORDERS,
    "nested.py": ORDERS,
    "profile.py": ORDERS,
    "pooled.py": ORDERS,
}
# Of these, only what fits nothing else.
_OTHERWISE = {"dit/attention.py": ATTENTION, "residual/attention.py": CACHE}
_SLICES = {
    "slice", "split", "concatenate", "pad", "dynamic_slice", "dynamic_update_slice", "squeeze", "gather",
    "dynamic-slice", "dynamic-update-slice",
}  # fmt: skip
_ORDERS = {"transpose", "copy", "reshape", "reverse", "rev"}
# How the loop over blocks reads and writes a layer's slice of the cache; the loop itself slices the weights.
_SLICES_OF_CACHE = (
    "closed_call/jit(dynamic_index_in_dim)",
    "closed_call/jit(dynamic_update_index_in_dim)",
)
_PRODUCTS = {"convolution", "dot"}
_TRIVIAL = {"parameter", "constant", "bitcast", "broadcast", "iota", "tuple", "get-tuple-element"}


class Kernel(NamedTuple):
    """A Pallas kernel that a block runs.

    Attributes:
        block: kind of block.
        part: one of `qsjax.budget.parts.PARTS`.
        path: scopes inside the block and the kernel's name, as "qkv/quantize_tokens".
        calls: calls a block.
        elements: values in its largest result.
        bytes: of operands and results.
        profiled: cycles of a call by the profiler; 0 without it.
        operands: their shapes.
    """

    block: str
    part: str
    path: str
    calls: float
    elements: int
    bytes: float
    profiled: int
    operands: tuple[tuple[int, ...], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All but the operands, which only the process that compiled needs."""
        return {name: value for name, value in self._asdict().items() if name != "operands"}


class Reading(NamedTuple):
    """A step by blocks.

    Attributes:
        blocks: kind of block -> part -> XLA's cycles, without Pallas kernels; of the ends for the whole step.
        kernels: the Pallas kernels.
    """

    blocks: dict[str, dict[str, float]]
    kernels: list[Kernel]


def read(text: str, *, depth: int, unknown: int = 1) -> Reading:
    """Read the optimized HLO of a step.

    Args:
        text: of the compiled program.
        depth: blocks of each kind that it runs; cycles are those of one.
        unknown: how often a loop runs that is as long as the data say.

    Raises:
        ValueError: the text is no HLO module.
    """
    known, steps = sources(text), executed(text, unknown=unknown)
    blocks_of_loops = _loops(steps)
    blocks: dict[str, dict[str, float]] = {name: defaultdict(float) for name in BLOCKS}
    kernels = []
    for step in steps:
        block = block_of(step.origin.op_name) or next(
            (blocks_of_loops[loop] for loop in reversed(step.loops) if blocks_of_loops.get(loop)),
            ENDS,
        )
        times = step.times / (1 if block == ENDS else depth)
        if is_kernel(step.instruction):
            kernels.append(_kernel(step, block, times, known))
        else:
            blocks[block][part_of(step, known)] += times * step.instruction.cycles
    return Reading({name: dict(parts) for name, parts in blocks.items()}, kernels)


def block_of(op_name: str) -> str | None:
    """The kind of block in whose scope an instruction is; None if it is in none."""
    return next((_SCOPES[word] for word in op_name.split("/") if word in _SCOPES), None)


def path_of(op_name: str) -> str:
    """The scopes inside of a block and the kernel's name, as "qkv/quantize_tokens"."""
    words = op_name.split("/")
    scope = next((n for n, word in enumerate(words) if word in _SCOPES), -1)
    return "/".join(word for word in words[scope + 1 :] if word != "pallas_call")


def is_kernel(one: Instruction) -> bool:
    """Whether an instruction runs a Pallas kernel."""
    return one.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in one.text


def part_of(step: Executed, known: dict[int, tuple[Source, ...]]) -> str:
    """The part of an instruction that is no Pallas kernel.

    A fusion does several things; the part that makes most of its values names it.
    """
    one, scopes = step.instruction, step.origin.op_name.split("/")
    if one.opcode in _PRODUCTS or any(inner.opcode in _PRODUCTS for inner in step.inside):
        products = [inner for inner in step.inside if inner.opcode in _PRODUCTS] or [step.origin]
        default = ATTENTION if ATTENTION in scopes else PRODUCTS
        return _by_file(known, [*products, step.origin]) or default
    votes: Counter[str] = Counter()
    for inner in step.inside:
        if inner.opcode not in _TRIVIAL:
            votes[_part_alone(inner, known)] += elements(inner.result)
    votes.pop(REST, None)
    if votes:
        return max(votes, key=votes.__getitem__)
    if (part := _part_alone(step.origin, known)) != REST:
        return part
    if one.opcode in _ORDERS or one.opcode in _SLICES:
        return SLICES if one.opcode in _SLICES else ORDERS
    files = _files(step.origin, known)
    return next((part for file, part in _OTHERWISE.items() if file in files), REST)


def _part_alone(one: Instruction, known: dict[int, tuple[Source, ...]]) -> str:
    words = one.op_name.split("/")
    primitive = words[-1]
    if block_of(one.op_name) is None and any(path in one.op_name for path in _SLICES_OF_CACHE):
        return CACHE
    if part := _by_file(known, [one]):
        return part
    if primitive in _SLICES or one.opcode in _SLICES:
        return SLICES
    return ORDERS if primitive in _ORDERS or one.opcode in _ORDERS else REST


def _files(one: Instruction, known: dict[int, tuple[Source, ...]]) -> list[str]:
    return [file for file, _ in known.get(one.frame, ())]


def _by_file(known: dict[int, tuple[Source, ...]], ones: Iterable[Instruction]) -> str | None:
    names = {file for one in ones for file in _files(one, known)}
    names |= {word for file in names for word in file.split("/")}
    return next((part for name, part in _FILES.items() if name in names), None)


def _loops(steps: list[Executed]) -> dict[str, str]:
    """Body of a loop -> the block in whose scope most of its instructions are."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for step in steps:
        if (block := block_of(step.origin.op_name)) is not None:
            for loop in step.loops:
                votes[loop][block] += 1
    return {loop: counts.most_common(1)[0][0] for loop, counts in votes.items()}


def _kernel(
    step: Executed, block: str, calls: float, known: dict[int, tuple[Source, ...]]
) -> Kernel:
    path = path_of(step.instruction.op_name)
    name = step.instruction.name.split(".")[0]
    part = next((part for word, part in _KERNELS.items() if word in name), None)
    part = part or _by_file(known, [step.instruction]) or REST
    size = elements(step.instruction.result)
    return Kernel(
        block, part, path or name, calls, size, step.bytes, step.instruction.profiled,
        step.instruction.operand_shapes,
    )  # fmt: skip
