"""The folder of a calibration that is not finished; nothing is deleted but what carries its marker."""

import os
import re
import shutil
from pathlib import Path

from qsjax.disk import remove, write_atomically, writing
from qsjax.errors import InputError
from qsjax.untrusted import read_text

_MARKER = "identity"


def make(folder: Path, identity: str) -> None:
    """Make the folder of an unfinished calibration, or empty that of another one.

    Raises:
        InputError: a folder of that name is no calibration's.
    """
    with writing(folder):
        if os.path.lexists(folder):
            found = marked(folder)
            if found is None:
                raise InputError(
                    f"{folder}: is in the way and no calibration's; move it or name another checkpoint folder"
                )
            if found != identity:
                shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        write_atomically(folder / _MARKER, identity.encode())


def marked(folder: Path) -> str | None:
    """The identity of the calibration whose folder this is, "" if it has none yet; None if it is no such folder."""
    if folder.is_symlink() or not folder.is_dir():
        return None
    if not (folder / _MARKER).is_file():
        # Killed before its first file had its name, or somebody's.
        return None if {path.name for path in folder.iterdir()} - {f"{_MARKER}.tmp"} else ""
    found = read_text(folder / _MARKER)
    return found if re.fullmatch("[0-9a-f]{64}", found) else None


def delete(folder: Path, *, of: str) -> None:
    """Delete the folder of a calibration, its marker last: what an interruption leaves is still known as one.

    Args:
        folder: of it; another's is left alone.
        of: its identity.

    Raises:
        DiskError: the disk refuses.
    """
    if marked(folder) == of:
        with writing(folder):
            for path in folder.iterdir():
                if path.name != _MARKER:
                    remove(path)
            shutil.rmtree(folder)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
