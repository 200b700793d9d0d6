"""Storing one item: with Orbax, plain bytes in chunks, or as the files of another checkpoint."""

import errno
import logging
import os
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.disk import beside, free_bytes, remove
from qsjax.errors import CheckpointError
from qsjax.untrusted.files import shown_path

CHUNK_BYTES = 16 * 2**20
"""What is read from a file at once."""
_UNCOMMITTED = ".orbax-checkpoint-tmp"
"""Orbax's name of an item that it is writing."""
_DEEPEST = 8
"""Folders in each other; Orbax makes three."""
_ROOM, _ROOM_A_LEAF = 1 << 16, 1 << 12
"""Bytes that Orbax adds, about."""


def store(directory: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Store an item; when this returns it survives a power cut.

    Args:
        directory: to appear; what an interruption has left of it is deleted.
        leaves: by name.

    Raises:
        OSError, ValueError: the disk has no room for it, or refuses otherwise.
    """
    import orbax.checkpoint.experimental.v1 as ocp  # half a second, and who reads needs none of it

    for left in (directory, beside(directory, _UNCOMMITTED)):
        remove(left)
    nbytes = sum(array.nbytes for array in leaves.values())
    free = free_bytes(directory)
    if free is not None and free < nbytes + _ROOM + _ROOM_A_LEAF * len(leaves):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # Plain bytes: weights hardly shrink, and to decompress them takes most of a load's processor time.
    context = ocp.Context()
    saving = context.array.saving
    saving.use_compression, saving.storage_options.chunk_byte_size = False, CHUNK_BYTES
    with _quiet(), context:
        ocp.save(directory.absolute(), dict(leaves))  # Orbax takes no relative path


def copy_folder(source: Path, target: Path, *, deepest: int = _DEEPEST) -> None:
    """Link the files of a folder, or copy them where the file system has no links; finished items are never written to.

    Raises:
        CheckpointError: there is no such folder, or a link, a pipe or a device in it, or more than so many folders in each other.
    """
    if not deepest:
        raise CheckpointError(
            f"{shown_path(source)}: has more folders in each other than an item has; get the checkpoint again from its source"
        )
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except OSError as error:
        raise CheckpointError(
            f"{shown_path(source)}: cannot be read ({error.strerror}); get the checkpoint again from its source"
        ) from error
    target.mkdir(parents=True)
    for entry in entries:
        place = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            copy_folder(Path(entry.path), place, deepest=deepest - 1)
        elif entry.is_file(follow_symlinks=False):
            try:
                os.link(entry.path, place, follow_symlinks=False)
            except (OSError, NotImplementedError):
                shutil.copy2(entry.path, place, follow_symlinks=False)
        else:
            raise CheckpointError(
                f"{shown_path(entry.path)}: is a link, a pipe or a device in a checkpoint; put the file itself there"
            )


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep Orbax's threads from printing tracebacks: what they fail with is raised here.

    After a failure, writes that were under way end later, and tell an event loop that is gone: that stays unsaid.
    """
    logger, before = logging.getLogger("absl"), sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    logger.addFilter(_no_exception)
    sys.unraisablehook = hook
    try:
        yield
        sys.unraisablehook = before
    finally:
        logger.removeFilter(_no_exception)


def _no_exception(record: logging.LogRecord) -> bool:
    return record.exc_info is None
