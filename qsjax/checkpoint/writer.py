"""Writing a checkpoint: item by item, resumable, and visible only when it is whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.checkpoint.finished import IDENTITY, JOURNAL, is_checkpoint, tidy
from qsjax.checkpoint.manifest import FORMAT_VERSION, MANIFEST, Manifest, sealed
from qsjax.checkpoint.schema import Leaf
from qsjax.checkpoint.storing import copy_folder, store
from qsjax.disk import (
    beside,
    put_aside,
    remove,
    replace_folder,
    write_atomically,
    writing,
)
from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import inside, parse_object, read_bytes, read_object, read_text, require_name
from qsjax.untrusted.files import LARGE, shown_path

_EMPTY = {JOURNAL, IDENTITY, f"{IDENTITY}.tmp"}
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
        marker = self._temporary / IDENTITY
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
        (self._temporary / JOURNAL).mkdir(parents=True, exist_ok=True)
        write_atomically(marker, self._identity.encode())

    def finished_items(self) -> dict[str, dict[str, Leaf]]:
        """`component/item` -> leaf specifications, for every item that is whole on disk.

        Raises:
            CheckpointError: the journal is damaged.
        """
        entries = [entry for entry in self._entries() if "source" not in entry]
        if not all(isinstance(entry.get("leaves"), dict) and "item" in entry for entry in entries):
            raise self._damaged()
        return {entry["item"]: entry["leaves"] for entry in entries}

    def hashed_sources(self) -> dict[str, str]:
        """What was entered with `enter_source`.

        Raises:
            CheckpointError: the journal is damaged.
        """
        entries = [entry for entry in self._entries() if "source" in entry]
        if not all(
            isinstance(entry.get(key), str) for entry in entries for key in ("source", "sha256")
        ):
            raise self._damaged()
        return {entry["source"]: entry["sha256"] for entry in entries}

    def enter_source(self, name: str, sha256: str) -> None:
        """Note that all that is made of a source file is stored, and its digest: it is not needed any more.

        Args:
            name: "component/file".
            sha256: of the file.

        Raises:
            DiskError: the disk is full, or refuses otherwise.
        """
        self._note(f"source {name}", {"source": name, "sha256": sha256})

    def _entries(self) -> list[dict[str, Any]]:
        return [read_object(path) for path in sorted((self._temporary / JOURNAL).glob("*.json"))]

    def _damaged(self) -> CheckpointError:
        return CheckpointError(
            f"{self._temporary}: its journal is damaged; delete the folder and start again"
        )

    def abandon(self) -> None:
        """Leave nothing of work that was refused before its first item; what was begun before stays.

        Raises:
            DiskError: the disk refuses.
        """
        if not self.finished_items():
            with self._writing():
                remove(self._temporary)

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
            copy_folder(origin, directory)
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
        name = f"{component}/{item}"
        self._note(name, {"item": name, "leaves": specifications})

    def _note(self, what: str, entry: Mapping[str, Any]) -> None:
        name = hashlib.sha256(what.encode()).hexdigest()[:32]
        with self._writing():
            path = self._temporary / JOURNAL / f"{name}.json"
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
            tidy(self._destination)
        return Manifest.read(self._destination)

    def discard(self) -> None:
        """Delete the unfinished work, which can become no checkpoint."""
        with self._writing():
            remove(self._temporary)

    @contextmanager
    def _writing(self, nbytes: int = 0) -> Generator[None, None, None]:
        """What the disk refuses is said of the destination, whichever file it was."""
        with writing(self._destination, _AGAIN, nbytes=nbytes):
            yield


def digest(array: np.ndarray) -> str:
    """sha256 of the array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
