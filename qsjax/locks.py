"""One process a place: a lock file that says who holds it, and that the system releases when its holder dies.

Where a file system or a platform knows no locks, a warning says so and the work goes on without.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qsjax.disk import beside, writing
from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import parse_object, shown
from qsjax.untrusted.files import shown_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

SUFFIX = ".lock"
_LARGEST = 4096
_FOREIGN: dict[str, Any] = {}
_LOOKS, _PAUSE = 20, 0.02
"""How often, and after how many seconds, a lock is looked at before its holder counts as another: it may not have written yet who it
is, or what is there is of one that died."""


@contextmanager
def lock(place: Path, *, doing: str, identity: str) -> Generator[bool, None, None]:
    """Hold a place while the block runs.

    The lock is on a file beside it, "NAME.lock", which is removed in the end. A process that does the same waits until the
    holder has finished; one that does something else is refused.

    >>> with lock(Path("checkpoints/w4a8"), doing="convert", identity=digest) as waited:
    ...     # if `waited`, another process did the same until now: look whether the work is done

    Args:
        place: a file or folder, which need not exist; its parent is made.
        doing: what is done, one word for other processes' messages.
        identity: of exactly this work; equal for a process that does the same.

    Yields:
        Whether another process held the place before.

    Raises:
        InputError: another process does something else there, or the lock file cannot be written.
    """
    path = beside(place, SUFFIX)
    with writing(place):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, waited = _acquire(path, place, identity)
    try:
        with writing(place):
            _write_holder(descriptor, doing, identity)
        yield waited
    finally:
        # Removed before it is released: who waits finds another file of this name, or none, and looks again.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path, place: Path, identity: str) -> tuple[int, bool]:
    """An open lock file that is held and has its name still, and whether it took waiting."""
    waited, looks = False, 0
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(path, flags, 0o644)
        try:
            held = _try(descriptor, path)
            holder = _read_holder(descriptor)
            if not held and holder.get("identity") == identity:
                if not waited:
                    logger.info("%s: waits for %s, which does the same", place, _named(holder))
                waited = held = True
                _wait(descriptor)
            if held and _is_at(descriptor, path):
                if holder is _FOREIGN:
                    raise InputError(
                        f"{shown_path(path)}: is in the way and no lock; move it or name another place"
                    )
                return descriptor, waited
            if not held and looks == _LOOKS:
                raise InputError(
                    f"{shown_path(place)}: {_named(holder)} is at work there; wait until it has finished, or name another place"
                )
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not held:
            looks += 1
            time.sleep(_PAUSE)


def _try(descriptor: int, path: Path) -> bool:
    """Take the lock if it is free; True also where there are no locks."""
    if fcntl is None:
        logger.warning("%s: this platform has no locks; run one command at a time there", path)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning(
            "%s: the file system has no locks (%s); run one command at a time there",
            path,
            error.strerror,
        )
    return True


def _wait(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one of this name: the last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int, doing: str, identity: str) -> None:
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "doing": doing,
        "identity": identity,
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _read_holder(descriptor: int) -> dict[str, Any]:
    """Who holds the lock, as far as it has written it; `_FOREIGN` for what no lock holds."""
    content = os.pread(descriptor, _LARGEST, 0).strip(b"\0")
    if not content:  # also what a power cut leaves
        return {}
    try:
        return parse_object(content, "the lock")
    except CheckpointError:
        return _FOREIGN


def _named(holder: dict[str, Any]) -> str:
    if not isinstance(holder.get("process"), int):
        return "another process"
    return (
        f"process {holder['process']} on {shown(holder.get('host'))} ({shown(holder.get('doing'))})"
    )
