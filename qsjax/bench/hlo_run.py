"""What a run of a compiled program executes: every instruction with the number of times that it runs."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from qsjax.bench.hlo import Instruction, bytes_of, parse

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"\bs32\[\][^=]* constant\((\d+)\)")
# What these stand for is counted where it is executed, or moves nothing.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "iota",
    "partition-id",
}


class Executed(NamedTuple):
    """An instruction that runs, and how.

    Attributes:
        instruction: what runs.
        times: how often, by the trip counts of the loops around it.
        loops: names of the bodies of those loops, outermost first.
        origin: the instruction itself, or, if the compiler made it, the one that it copies: what tells where it comes from.
        inside: of a fusion, the instructions that it is made of.
        bytes: of its operands and results, each counted once.
    """

    instruction: Instruction
    times: int
    loops: tuple[str, ...]
    origin: Instruction
    inside: tuple[Instruction, ...]
    bytes: float


def executed(text: str, *, unknown: int = 1) -> list[Executed]:
    """Every instruction that a run of the program executes, loops with their trip counts, of branches the longest.

    The instructions inside a fusion are not listed: the fusion has one cost.

    Args:
        text: the optimized HLO.
        unknown: how often a loop runs whose trip count the text does not tell.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations, entry = parse(text)
    return list(_walk(computations, entry, 1, (), unknown))


def _walk(
    computations: dict[str, list[Instruction]],
    name: str,
    times: int,
    loops: tuple[str, ...],
    unknown: int,
) -> Iterator[Executed]:
    known = {one.name: one for one in computations.get(name, [])}
    for one in known.values():
        roles = one.called
        if one.opcode == "while":
            inner, trips = (*loops, roles["body"]), trip_count(one, computations, unknown)
            yield from _walk(computations, roles["body"], times * trips, inner, unknown)
        elif one.opcode == "conditional":
            branches = [
                list(_walk(computations, called, times, loops, unknown))
                for called in roles.values()
            ]
            yield from max(branches, key=_cost, default=[])
        elif one.opcode in ("call", "async-start"):
            called = next(iter(roles.values()), "")
            yield from _walk(computations, called, times, loops, unknown)
        elif one.opcode not in _FREE:
            shapes = [one.result, *(known[o].result for o in set(one.operands) if o in known)]
            inside = tuple(computations.get(roles.get("calls", ""), ()))
            origin = _origin(one, known)
            yield Executed(one, times, loops, origin, inside, sum(map(bytes_of, shapes)))


def _cost(branch: list[Executed]) -> int:
    return sum(one.times * (one.instruction.profiled or one.instruction.cycles) for one in branch)


def _origin(one: Instruction, known: dict[str, Instruction]) -> Instruction:
    """Itself; of a copy that the compiler made, the nearest first operand with a path."""
    seen = {one.name}
    while not one.op_name and one.operands and one.operands[0] in known:
        one = known[one.operands[0]]
        if one.name in seen:
            break
        seen.add(one.name)
    return one


def trip_count(
    loop: Instruction, computations: dict[str, list[Instruction]], unknown: int = 1
) -> int:
    """How often a `while` runs: as the compiler says, else the constant that its condition compares with, else `unknown`.

    `jax.lax.scan` and `jax.lax.map` count from 0.
    """
    if match := _TRIPS.search(loop.text):
        return int(match[1])
    condition = computations.get(loop.called.get("condition", ""), [])
    lines = [f"{one.result} = {one.result} {one.opcode}({one.text}" for one in condition]
    for one in condition:
        for called in one.called.values():
            lines += [
                f"{i.result} = {i.result} {i.opcode}({i.text}" for i in computations.get(called, [])
            ]
    bounds = [int(match[1]) for line in lines if (match := _CONSTANT.search(line))]
    return max(bounds, default=unknown)
