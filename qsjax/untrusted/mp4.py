"""The comment of an mp4 file, found by walking its boxes: no decoder sees a stranger's file.

ISO/IEC 14496-12: a box is its length, a type of four bytes, and content, which may be boxes. iTunes' metadata, which FFmpeg writes
too, are in moov/udta/meta/ilst; a comment is a box of the type 0xA9 "cmt" that holds a box "data" of UTF-8 text.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qsjax.errors import InputError
from qsjax.untrusted.files import SMALL, open_regular, shown_path

_PATH = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")
_MOST_BOXES = 10_000
"""Of one level; a file in fragments has two a fragment."""
_BEFORE_CONTENT = {b"meta": 4, b"data": 8}
"""Bytes of version and flags, and of type and locale, before a box's content."""


def read_comment(path: str | os.PathLike[str]) -> str | None:
    """The comment of an mp4 file; None if it has none.

    Args:
        path: of a file that anyone may have written; a few bytes of every box are read, and at most 1 MB of text.

    Raises:
        InputError: it cannot be read, is no mp4 file, or its boxes or its comment are damaged.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        end = os.fstat(file.fileno()).st_size
        try:
            kind, *_ = next(_boxes(file, 0, end), (b"",))
            if kind != b"ftyp":
                raise ValueError("it does not begin as one")
            return _find(file, end)
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{shown_path(Path(path))}: is no usable mp4 file ({reason}); name a video that qsjax wrote"
            ) from error


def _find(file: BinaryIO, end: int) -> str | None:
    start = 0
    for wanted in _PATH:
        found = (box for box in _boxes(file, start, end) if box[0] == wanted)
        if (box := next(found, None)) is None:
            return None
        _, start, end = box
        start += _BEFORE_CONTENT.get(wanted, 0)
    if not 0 <= end - start <= SMALL:
        raise ValueError(f"its comment has {end - start} bytes")
    file.seek(start)
    return file.read(end - start).decode("utf-8")


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type of every box between two places, and where its content begins and ends."""
    for _ in range(_MOST_BOXES):
        if start >= end:
            return
        file.seek(start)
        header = file.read(16)
        size, kind, content = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if size == 1:  # the length is in the eight bytes that follow
            size, content = int.from_bytes(header[8:16], "big"), start + 16
        elif size == 0:  # to the end of the file
            size = end - start
        if len(kind) < 4 or not content <= start + size <= end:
            raise ValueError(f"a box at byte {start} is damaged")
        yield kind, content, start + size
        start += size
    raise ValueError(f"it has more than {_MOST_BOXES} boxes")
