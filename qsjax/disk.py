"""Writing files: each appears whole or not at all, and what a disk refuses is said in one sentence."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from qsjax.errors import InputError
from qsjax.units import shown_bytes
from qsjax.untrusted.files import shown_path

AGAIN = "make room or name a writable place, and do the same again"
_STATUS = re.compile(r"\b(RESOURCE_EXHAUSTED|OUT_OF_RANGE|PERMISSION_DENIED|DATA_LOSS)\b")
"""TensorStore's errors carry the name of a status, and most of them the system's number of the error."""
_NUMBER = re.compile(r"os_error_code='(\d+)'")


class DiskError(InputError):
    """A place cannot be written.

    Args:
        place: that was asked for.
        reason: in the system's words.
        then: what to do.
    """

    def __init__(self, place: Path, reason: str, then: str = AGAIN) -> None:
        super().__init__(f"{shown_path(place)}: cannot be written ({reason}); {then}")
        self.reason = reason

    @property
    def is_full(self) -> bool:
        """Whether it lacks room, for this file as for the next one."""
        return self.reason in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


@contextmanager
def writing(place: Path, then: str = AGAIN, *, nbytes: int = 0) -> Generator[None, None, None]:
    """Say in one sentence what a disk refuses while the block writes, and nothing else is done in it.

    Of several in each other, the outermost names its place.

    Args:
        place: for the message.
        then: what to do, for the message.
        nbytes: that the block writes; with less room the disk was full, whatever a library says of it.

    Raises:
        DiskError: the disk is full, read-only or broken, or the place is not to be written.
    """
    try:
        yield
    except DiskError as error:
        raise DiskError(place, error.reason, then) from error
    except OSError as error:
        raise DiskError(place, error.strerror or str(error)[:200], then) from error
    except (ValueError, RuntimeError) as error:
        reason = _reason(place, str(error), nbytes)
        if isinstance(error, InputError) or reason is None:
            raise
        raise DiskError(place, reason, then) from error


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A temporary name beside a file, whose folder is there: what the block writes takes the file's place when it ends without an error.

    It is on the disk then. Nothing is left of it after an error, and what a killed process left is removed by the next one.

    Raises:
        DiskError: as `writing`; another process writes the same file.
    """
    temporary = beside(path, ".tmp")
    with writing(path):
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        own = temporary.stat()
        try:
            yield temporary
            _require_own(temporary, own)
            _sync(temporary)
            temporary.replace(path)
        finally:
            with suppress(OSError):
                _require_own(temporary, own)
                temporary.unlink()
        _sync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, in a folder that is there, so that it appears whole or not at all, and is on the disk when this returns.

    Raises:
        DiskError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def replace_folder(new: Path, folder: Path, ours: Callable[[Path], bool]) -> None:
    """Give a folder that is whole its name; one that is there is put aside until then.

    Args:
        new: the folder.
        folder: its name.
        ours: says of a folder whether it is of the kind that may be deleted.

    Raises:
        OSError: the disk refuses.
        InputError: what is to be deleted is something else.
    """
    aside = put_aside(folder, ours)
    if folder.exists():
        remove(aside)
        folder.rename(aside)
    new.rename(folder)
    _sync(folder.parent)
    remove(aside)


def put_aside(folder: Path, ours: Callable[[Path], bool]) -> Path:
    """Where `replace_folder` puts the old folder.

    Raises:
        InputError: something else has this name.
    """
    aside = beside(folder, ".replaced")
    if os.path.lexists(aside) and not ours(aside):
        raise InputError(
            f"{shown_path(aside)}: is in the way and not ours; move it or name another folder"
        )
    return aside


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """The place of this name and a suffix, in the same folder.

    Raises:
        InputError: the path has no name of its own ("/", ".."), or a zero byte.
    """
    if path.name in ("", "..") or "\0" in str(path):
        raise InputError(f"{shown_path(path)}: has no name of its own; name a new file or folder")
    return path.with_name(path.name + suffix)


def require_room(
    place: Path, nbytes: int, what: str = "", then: str = "make room or name another disk"
) -> None:
    """Refuse work that the disk has no room for, before it begins.

    Args:
        place: a file or folder to be, which need not exist.
        nbytes: that it needs.
        what: needs it, for the message ("calibration ").
        then: what to do, for the message.

    Raises:
        InputError: says both sizes.
    """
    free = free_bytes(place)
    if free is not None and free < nbytes:
        raise InputError(
            f"{shown_path(place)}: {what}needs {shown_bytes(nbytes)}, {shown_bytes(free)} are free; {then}"
        )


def free_bytes(place: Path) -> int | None:
    """Bytes of the disk that a place is on; None if nobody knows."""
    with suppress(OSError):
        return shutil.disk_usage(_nearest(place)).free
    return None


def shares_disk(place: Path, other: Path) -> bool:
    """Whether two places, which need not exist, are on one disk; True also if nobody knows."""
    with suppress(OSError):
        return _nearest(place).stat().st_dev == _nearest(other).stat().st_dev
    return True


def _nearest(place: Path) -> Path:
    """The place, or the first folder above it that is there."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.exists())


def _reason(place: Path, text: str, nbytes: int) -> str | None:
    """What a library's error says of the disk; None if it is about something else."""
    if "embedded null" in text:
        return "its name has a zero byte"
    if number := _NUMBER.search(text):
        return os.strerror(int(number[1]))
    free = free_bytes(place)
    if free is not None and free < nbytes:
        return os.strerror(errno.ENOSPC)
    status = _STATUS.search(text)
    return None if status is None else text.splitlines()[0][:200]


def _require_own(temporary: Path, own: os.stat_result) -> None:
    """The file is the one that was made: another process with the same name may have made its own."""
    try:
        same = os.path.samestat(temporary.stat(), own)
    except FileNotFoundError:
        same = False
    if not same:
        raise OSError(errno.EBUSY, "another process writes the same file")


def _sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk; where a folder cannot be opened, the system does as it does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder, on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
