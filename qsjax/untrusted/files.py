"""Opening and reading files of strangers: regular files only, and not more than there can be."""

import os
import stat
from pathlib import Path

from qsjax.errors import InputError
from qsjax.untrusted.names import shown

SMALL = 1 << 20
"""Bytes of a configuration, a template, a record."""
LARGE = 16 << 20
"""Bytes of a manifest, an index, a header: a hundred thousand tensors."""
TOKENIZER = 24 << 20
"""Bytes of a tokenizer; LLaMA-3's has 9 MB, and 17 where each merge is a list."""


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a file for reading; returns its descriptor.

    A named pipe would wait for its writer for ever, and a device has no end: they are refused, also by way of a link.

    Raises:
        InputError: there is no such file, it cannot be opened, or is not a regular one.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{shown_path(path)}: cannot be opened ({reason}); name a readable file"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(
            f"{shown_path(path)}: is a folder, a pipe or a device; name a regular file"
        )
    return descriptor


def read_bytes(path: str | os.PathLike[str], largest: int = SMALL) -> bytes:
    """The content of a regular file.

    Args:
        path: of it.
        largest: bytes that are read at most.

    Raises:
        InputError: it cannot be opened or read, is not a regular file, or is larger.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            content = file.read(largest + 1)
        except OSError as error:
            raise InputError(
                f"{shown_path(path)}: cannot be read ({error.strerror}); check the disk and try again"
            ) from error
    if len(content) > largest:
        raise InputError(
            f"{shown_path(path)}: has more than {largest} bytes, far more than such a file needs; name the right file"
        )
    return content


def read_text(path: str | os.PathLike[str], largest: int = SMALL) -> str:
    """The content of a regular file of UTF-8 text.

    Raises:
        InputError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown_path(path)}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path for a message: as it is if it can be printed, else escaped and cut."""
    text = os.fspath(Path(path))
    return text if text.isprintable() and len(text) <= 400 else shown(text, 400)
