"""Which Python function an instruction of a compiled program comes from, by the tables at the head of its text.

An instruction names a stack frame; a frame has a location and a parent; a location has a file and a function.
"""

import re
from pathlib import PurePath

Source = tuple[str, str]
"""A file as "folder/name.py", and a function in it."""

_ROW = re.compile(r'^(\d+) (?:"(.*)"|\{(.*)\})$')
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


def sources(text: str) -> dict[int, tuple[Source, ...]]:
    """Frame -> the functions that were being called, the innermost first; empty if the text has no tables."""
    tables = _tables(text)
    files, functions = tables["FileNames"], tables["FunctionNames"]
    locations = {
        number: (
            _short(files.get(fields["file_name_id"], "")),
            functions.get(fields["function_name_id"], ""),
        )
        for number, row in tables["FileLocations"].items()
        if (fields := _fields(row)).keys() >= {"file_name_id", "function_name_id"}
    }
    frames = {number: _fields(row) for number, row in tables["StackFrames"].items()}
    # Some versions write the parent's number plus one, so that the first frame, which has none, names itself.
    shift = 1 if frames.get(1, {}).get("parent_frame_id") == 1 else 0

    def chain(number: int) -> tuple[Source, ...]:
        found: list[Source] = []
        seen: set[int] = set()
        while number in frames and number not in seen:
            seen.add(number)
            found.append(locations.get(frames[number].get("file_location_id", 0), ("", "")))
            number = frames[number].get("parent_frame_id", 0) - shift
        return tuple(found)

    return {number: chain(number) for number in frames}


def _tables(text: str) -> dict[str, dict[int, str]]:
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    table: dict[int, str] | None = None
    for line in text.splitlines():
        if line in tables:
            table = tables[line]
        elif table is not None:
            if match := _ROW.match(line):
                table[int(match[1])] = match[2] if match[2] is not None else match[3]
            elif line.startswith(("%", "ENTRY")):  # the tables are at the head
                break
    return tables


def _fields(row: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row)}


def _short(path: str) -> str:
    return "/".join(PurePath(path).parts[-2:])
