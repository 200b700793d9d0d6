"""Storing one item with Orbax: plain bytes in chunks, and of its errors no more than the caller is told."""

import errno
import logging
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from qsjax.disk import beside, free_bytes, remove

CHUNK_BYTES = 16 * 2**20
"""What is read from a file at once."""
_UNCOMMITTED = ".orbax-checkpoint-tmp"
"""Orbax's name of an item that it is writing."""
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


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep Orbax's threads from printing tracebacks: what they fail with is raised here."""
    logger = logging.getLogger("absl")
    logger.addFilter(_no_exception)
    try:
        yield
    except Exception:
        # Writes that were under way end later, and tell an event loop that is gone.
        if sys.unraisablehook is not _ignoring_closed_loops:
            _ignored_before.append(sys.unraisablehook)
            sys.unraisablehook = _ignoring_closed_loops
        raise
    finally:
        logger.removeFilter(_no_exception)


_ignored_before: list[Any] = []


def _no_exception(record: logging.LogRecord) -> bool:
    return record.exc_info is None


def _ignoring_closed_loops(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        _ignored_before[-1](unraisable)
