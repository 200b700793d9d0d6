"""JSON of strangers: bounded in size and depth, with finite numbers, and without duplicate keys."""

import json
import math
import os
from collections.abc import Iterator
from typing import Any

from qsjax.errors import CheckpointError
from qsjax.untrusted.files import LARGE, read_bytes, shown_path
from qsjax.untrusted.names import shown

DEEPEST = 64
"""Lists and objects in each other; the deepest file of a model has seven."""
_LONGEST_INTEGER = 20


def parse_json(data: bytes, what: str) -> Any:
    """Parse JSON.

    Args:
        data: UTF-8 text; its size is bounded where it is read.
        what: what the text is, for the message ("FILE: the header").

    Raises:
        CheckpointError: not UTF-8 or not JSON; a key twice in one object, a number that is not finite or has more than 64
            bits, or more than `DEEPEST` lists and objects in each other.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
        check_plain(value)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not usable JSON ({str(error)[:200]}); get the file again from its source"
        ) from error
    return value


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Parse JSON whose outermost value is an object.

    Raises:
        CheckpointError: as `parse_json`, or it is no object.
    """
    value = parse_json(data, what)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{what} is a JSON {type(value).__name__} instead of an object; get the file again from its source"
        )
    return value


def read_object(path: str | os.PathLike[str], largest: int = LARGE) -> dict[str, Any]:
    """Parse a file that holds one JSON object.

    Raises:
        InputError: it cannot be read, or has more than `largest` bytes.
        CheckpointError: it is not a JSON object, or as `parse_json`.
    """
    return parse_object(read_bytes(path, largest), f"{shown_path(path)}: the file")


def check_plain(value: object) -> None:
    """Refuse plain data that is nested too deeply or holds a number that is not finite or has more than 64 bits.

    Raises:
        ValueError: in a few words.
    """
    # One iterator a level: millions of values are looked at without a list of them.
    levels: list[Iterator[object]] = [iter((value,))]
    while levels:
        for item in levels[-1]:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"the number {item} is not finite")
            if isinstance(item, int) and not -(2**63) <= item < 2**64:
                raise ValueError("an integer has more than 64 bits")
            if isinstance(item, dict | list):
                if len(levels) > DEEPEST:
                    raise ValueError(f"more than {DEEPEST} lists and objects are in each other")
                levels.append(iter(item.values() if isinstance(item, dict) else item))
                break
        else:
            levels.pop()


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"an integer has {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is not finite")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {shown(twice)} occurs twice")
    return values
