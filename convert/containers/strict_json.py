"""JSON objects out of untrusted files: bounded in size, without duplicate keys."""

import json
from pathlib import Path
from typing import Any

from convert.containers.byte_ranges import ByteRanges
from qsjax.errors import CheckpointError

_LARGEST_FILE = 64 << 20


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        data: UTF-8 text.
        what: what the text is, for the message ("FILE: the header").

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, or a key occurs twice in one object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not usable JSON ({str(error)[:200]}); get the file again from its source"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{what} is a JSON {type(value).__name__} instead of an object; get the file again from its source"
        )
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Parse a file that holds one JSON object.

    Raises:
        InputError: it cannot be opened.
        CheckpointError: it is too large or is not a JSON object.
    """
    file = ByteRanges(path)
    try:
        if file.size > _LARGEST_FILE:
            raise CheckpointError(
                f"{path}: has {file.size} bytes, far more than such a JSON file needs; get it again from its source"
            )
        return parse_object(file.raw(0, file.size), f"{path}: the file")
    finally:
        file.close()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice[:80]!r} occurs twice")
    return values
