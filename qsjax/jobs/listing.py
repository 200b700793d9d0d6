"""Files of prompts: text, one a line, or JSON, one object a line."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qsjax.config import from_mapping
from qsjax.errors import CheckpointError, InputError, QsjaxError
from qsjax.jobs.request import VideoRequest
from qsjax.untrusted import parse_object, read_text, require_relative, shown
from qsjax.untrusted.files import LARGE, shown_path

SUFFIX = ".mp4"
_JSON = (".jsonl", ".ndjson")
_MOST_LINES = 100_000
_LINE = "it"
"""A line, in messages that begin with its number."""


@dataclass(frozen=True, kw_only=True)
class Request(VideoRequest):
    """One video of many. What is None is as for all of them.

    Attributes:
        out: its file, a path inside the folder of all; "" is the number of its line, "0007.mp4".
    """

    out: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out:
            _require_inside(self.out)


class Refused(NamedTuple):
    """A line of which no video is made."""

    line: int
    reason: str


def read_requests(path: str | os.PathLike[str]) -> tuple[dict[int, Request], list[Refused]]:
    """The requests of a file by the number of their line, from 1, and the lines that are none.

    Args:
        path: text, a prompt a line; or, with the suffix .jsonl, an object a line with the fields of `Request`. Empty lines count, and
            are left out.

    Raises:
        InputError: it cannot be read, is not UTF-8, or holds no prompt at all.
    """
    name = shown_path(Path(path))
    lines = read_text(path, LARGE).removeprefix("\ufeff").split("\n")
    if len(lines) > _MOST_LINES:
        raise InputError(f"{name}: has {len(lines)} lines; give at most {_MOST_LINES} at a time")
    is_json = Path(path).suffix.lower() in _JSON
    requests: dict[int, Request] = {}
    refused: list[Refused] = []
    places: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        try:
            request = _of_json(line) if is_json else _of_text(line)
            place = place_of(number, request)
            if (other := places.setdefault(place, number)) != number:
                raise InputError(f"out {shown(place)} is that of line {other}; name another file")
            requests[number] = request
        except QsjaxError as error:
            refused.append(Refused(number, str(error).removeprefix(f"{_LINE}: ")))
    if not requests and not refused:
        raise InputError(f"{name}: holds no prompt; write one a line")
    return requests, refused


def place_of(line: int, request: Request) -> str:
    """The path of a request's video, inside the folder of all."""
    return request.out or f"{line:04}{SUFFIX}"


def _of_text(line: str) -> Request:
    if line.startswith("{"):
        raise InputError("looks like JSON; give the file a name that ends in .jsonl")
    return Request(prompt=line)


def _of_json(line: str) -> Request:
    try:
        values = parse_object(line.encode(), _LINE)
    except CheckpointError as error:
        raise InputError(f"{str(error).rpartition(';')[0]}; correct it") from error
    return from_mapping(Request, values, source=_LINE)


def _require_inside(out: str) -> None:
    try:
        require_relative(out, "it")
    except CheckpointError as error:
        raise InputError(
            f"out {shown(out)} is no path inside the folder of all videos; name one as clips/cat{SUFFIX}"
        ) from error
    if not out.lower().endswith(SUFFIX):
        raise InputError(f"out {shown(out)} does not end in {SUFFIX}; only such files are written")
