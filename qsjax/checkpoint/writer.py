"""Writing a checkpoint: item by item, resumable, and visible only when it is whole."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.checkpoint.manifest import FORMAT_VERSION, MANIFEST, Manifest, sealed
from qsjax.checkpoint.schema import Leaf
from qsjax.checkpoint.storing import store
from qsjax.disk import (
    beside,
    put_aside,
    remove,
    replace_folder,
    write_atomically,
    writing,
)
from qsjax.errors import CheckpointError, InputError, QsjaxError
from qsjax.untrusted import inside, parse_object, read_bytes, read_object, read_text, require_name
from qsjax.untrusted.files import LARGE, shown_path

logger = logging.getLogger(__name__)

_JOURNAL = "journal"
_IDENTITY = "identity"
_EMPTY = {_JOURNAL, _IDENTITY, f"{_IDENTITY}.tmp"}
_AGAIN = "make room or name a writable folder, and do the same again: it goes on where it stopped"


class CheckpointWriter:
    """Writes `DST.tmp` item by item and renames it to `DST` when everything is there.

    One process at a time: who may have company holds `qsjax.locks.lock` for the destination.

    Args:
        destination: the checkpoint directory to appear.
        identity: what is being written, as a digest; unfinished work of another identity is not resumed.
        overwrite: replace a finished checkpoint (only at the end) and discard foreign unfinished work.

    Raises:
        InputError: the destination exists and `overwrite` is off, or cannot be written.
    """

    def __init__(self, destination: Path, *, identity: str, overwrite: bool = False) -> None:
        self._destination, self._identity = destination, identity
        self._temporary = beside(destination, ".tmp")
        with self._writing():
            if destination.exists() and not overwrite:
                raise InputError(
                    f"{destination}: exists already; pass `overwrite=True` to replace it or name another folder"
                )
            if destination.exists() and not is_checkpoint(destination):
                raise InputError(
                    f"{destination}: exists and is not a checkpoint, so it is not overwritten; name another folder"
                )
            put_aside(destination, is_checkpoint)  # better refused now than after hours
            self._open(overwrite)

    def _open(self, overwrite: bool) -> None:
        marker = self._temporary / _IDENTITY
        if os.path.lexists(self._temporary):
            if not marker.exists():
                # Either our own folder before its first file, or somebody else's that happens to have this name.
                if (
                    self._temporary.is_symlink()
                    or not self._temporary.is_dir()
                    or {path.name for path in self._temporary.iterdir()} - _EMPTY
                ):
                    raise InputError(
                        f"{self._temporary}: is in the way and not ours; move it or name another folder"
                    )
            elif read_text(marker) != self._identity:
                if not overwrite:
                    raise InputError(
                        f"{self._temporary}: holds an unfinished conversion of other sources; "
                        f"pass `overwrite=True` to discard it or name another folder"
                    )
                shutil.rmtree(self._temporary)
        (self._temporary / _JOURNAL).mkdir(parents=True, exist_ok=True)
        write_atomically(marker, self._identity.encode())

    def finished_items(self) -> dict[str, dict[str, Leaf]]:
        """`component/item` -> leaf specifications, for every item that is whole on disk.

        Raises:
            CheckpointError: the journal is damaged.
        """
        journal = sorted((self._temporary / _JOURNAL).glob("*.json"))
        entries = [read_object(path) for path in journal]
        if not all(isinstance(entry.get("leaves"), dict) and "item" in entry for entry in entries):
            raise CheckpointError(
                f"{self._temporary}: its journal is damaged; delete the folder and start again"
            )
        return {entry["item"]: entry["leaves"] for entry in entries}

    def write_item(
        self,
        component: str,
        item: str,
        leaves: Mapping[str, np.ndarray],
        *,
        rows: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Store one item; when this returns it survives a power cut. `rows` marks parts of large leaves.

        Raises:
            CheckpointError: component or item are no plain names.
            DiskError: the disk is full, or refuses otherwise.
        """
        directory = self._directory(component, item)
        with self._writing(sum(array.nbytes for array in leaves.values())):
            store(directory, leaves)
        specifications: dict[str, Leaf] = {
            name: {
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "sha256": digest(array),
                **({"rows": list(rows[name])} if rows and name in rows else {}),
            }
            for name, array in leaves.items()
        }
        self._enter(component, item, specifications)

    def copy_item(
        self, source: Path, component: str, item: str, specifications: Mapping[str, Leaf]
    ) -> None:
        """Take an item over from another checkpoint as it is; on one file system this costs no space.

        Args:
            source: the other checkpoint's directory.
            component, item: the same in both.
            specifications: of its leaves, from the other manifest.

        Raises:
            CheckpointError: component or item are no plain names, or the item is not there, or holds something else than folders and
                regular files.
            DiskError: the disk is full, or refuses otherwise.
        """
        directory = self._directory(component, item)
        origin = inside(source, f"{component}/{item}", f"{shown_path(source)}: an item")
        with self._writing():
            remove(directory)
            _copy_folder(origin, directory)
        self._enter(component, item, specifications)

    def _directory(self, component: str, item: str) -> Path:
        """Where an item lies; its names may come from the manifest of a stranger."""
        what = f"{shown_path(self._destination)}: "
        return (
            self._temporary
            / require_name(component, f"{what}a component")
            / require_name(item, f"{what}an item")
        )

    def _enter(self, component: str, item: str, specifications: Mapping[str, Leaf]) -> None:
        entry = {"item": f"{component}/{item}", "leaves": specifications}
        name = hashlib.sha256(entry["item"].encode()).hexdigest()[:32]
        with self._writing():
            path = self._temporary / _JOURNAL / f"{name}.json"
            write_atomically(path, json.dumps(entry).encode())

    def write_file(self, relative: str, content: bytes) -> None:
        """Store a plain file (a tokenizer) inside the checkpoint.

        Raises:
            CheckpointError: the path leads elsewhere.
            DiskError: the disk is full, or refuses otherwise.
        """
        path = inside(self._temporary, relative, f"{shown_path(self._destination)}: a file")
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)

    def finish(self, data: dict[str, Any], order: Mapping[str, list[str]]) -> Manifest:
        """Write the manifest and rename into place.

        Args:
            data: manifest fields; `data["components"][name]["config"]` must be there, items are added here.
            order: component -> its items, in the order in which loading reads them.

        Raises:
            CheckpointError: what is under the final name is not what was written.
            DiskError: the disk is full, or refuses otherwise.
        """
        finished = self.finished_items()
        for component, items in order.items():
            data["components"][component]["items"] = {
                item: finished[f"{component}/{item}"] for item in items
            }
        data = sealed({**data, "format_version": FORMAT_VERSION, "identity": self._identity})
        content = json.dumps(data, indent=1).encode()
        # What no reader would take is not written.
        Manifest(self._destination, parse_object(content, f"{self._destination}: the manifest"))
        with self._writing():
            write_atomically(self._temporary / MANIFEST, content)
            # Journal and identity stay until the end: interrupted anywhere here, the same call finishes the job.
            replace_folder(self._temporary, self._destination, is_checkpoint)
            if read_bytes(self._destination / MANIFEST, LARGE) != content:
                raise CheckpointError(
                    f"{self._destination}: is not what was written there; nothing else may write to it, do the same again"
                )
            _tidy(self._destination)
        return Manifest.read(self._destination)

    @contextmanager
    def _writing(self, nbytes: int = 0) -> Generator[None, None, None]:
        """What the disk refuses is said of the destination, whichever file it was."""
        with writing(self._destination, _AGAIN, nbytes=nbytes):
            yield


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
    marker = destination / _IDENTITY
    unfinished = marker.is_file() and read_text(marker) == identity
    if not unfinished and (again or _identity_of(destination) != identity):
        return None
    manifest = Manifest.read(destination)
    with writing(destination):
        _tidy(destination)
        remove(put_aside(destination, is_checkpoint))
    logger.info("%s: is there already, made by the same command", destination)
    return manifest


def is_finished(checkpoint: Path) -> bool:
    """Whether it is there, and nothing of its writing is left to do."""
    return is_checkpoint(checkpoint) and not (checkpoint / _IDENTITY).exists()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a manifest."""
    return (folder / MANIFEST).is_file()


def _identity_of(checkpoint: Path) -> object:
    """The identity in a manifest, which says of what work it is; None in old and in damaged ones."""
    try:
        return read_object(checkpoint / MANIFEST).get("identity")
    except QsjaxError:
        return None


def _tidy(checkpoint: Path) -> None:
    """Delete what only the writing needed; the identity last, since it says that there is something to delete."""
    remove(checkpoint / _JOURNAL)
    remove(checkpoint / _IDENTITY)


def _copy_folder(source: Path, target: Path) -> None:
    """Link the files of a folder, or copy them where the file system has no links; finished items are never written to.

    Raises:
        CheckpointError: there is no such folder, or a link, a pipe or a device in it.
    """
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
            _copy_folder(Path(entry.path), place)
        elif entry.is_file(follow_symlinks=False):
            try:
                os.link(entry.path, place, follow_symlinks=False)
            except (OSError, NotImplementedError):
                shutil.copy2(entry.path, place, follow_symlinks=False)
        else:
            raise CheckpointError(
                f"{shown_path(entry.path)}: is a link, a pipe or a device in a checkpoint; put the file itself there"
            )


def digest(array: np.ndarray) -> str:
    """sha256 of the array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
