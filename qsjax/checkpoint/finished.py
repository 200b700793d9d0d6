"""How a checkpoint ends: what its manifest says of the work that made it, and what a process that was killed has left undone."""

import logging
from pathlib import Path

from qsjax.checkpoint.manifest import MANIFEST, Manifest
from qsjax.disk import put_aside, remove, writing
from qsjax.errors import QsjaxError
from qsjax.untrusted import read_object, read_text

logger = logging.getLogger(__name__)

JOURNAL = "journal"
"""A file an item that is whole, while a checkpoint is being written."""
IDENTITY = "identity"
"""What is being written, as a digest."""


def made_already(destination: Path, identity: str, *, again: bool) -> Manifest | None:
    """The checkpoint that the same work has made before; None where there is none.

    What a process that was killed after its last renaming has left undone is done.

    Args:
        destination: of the work.
        identity: of the work, as `CheckpointWriter` has it.
        again: it is wanted once more: then only a checkpoint counts whose making was interrupted at its very end.

    Raises:
        CheckpointError: the same work has made it, and it cannot be read.
        DiskError: the disk refuses.
    """
    with writing(destination):
        if not is_checkpoint(destination):
            return None
    marker = destination / IDENTITY
    unfinished = marker.is_file() and read_text(marker) == identity
    if not unfinished and (again or _identity_of(destination) != identity):
        return None
    manifest = Manifest.read(destination)
    with writing(destination):
        tidy(destination)
        remove(put_aside(destination, is_checkpoint))
    logger.info("%s: is there already, made by the same command", destination)
    return manifest


def is_finished(checkpoint: Path) -> bool:
    """Whether it is there, and nothing of its writing is left to do."""
    return is_checkpoint(checkpoint) and not (checkpoint / IDENTITY).exists()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a manifest."""
    return (folder / MANIFEST).is_file()


def _identity_of(checkpoint: Path) -> object:
    """The identity in a manifest, which says of what work it is; None in old and in damaged ones."""
    try:
        return read_object(checkpoint / MANIFEST).get("identity")
    except QsjaxError:
        return None


def tidy(checkpoint: Path) -> None:
    """Delete what only the writing needed; the identity last, since it says that there is something to delete."""
    remove(checkpoint / JOURNAL)
    remove(checkpoint / IDENTITY)
