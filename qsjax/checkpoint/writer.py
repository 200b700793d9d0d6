"""Writing a checkpoint: item by item, resumable, and visible only when it is whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from qsjax.checkpoint.manifest import FORMAT_VERSION, MANIFEST, Manifest, sealed
from qsjax.checkpoint.schema import Leaf
from qsjax.errors import InputError

CHUNK_BYTES = 16 * 2**20
"""What is read from a file at once."""
_JOURNAL = "journal"
_IDENTITY = "identity"
_EMPTY = {_JOURNAL, _IDENTITY, f"{_IDENTITY}.tmp"}


class CheckpointWriter:
    """Writes `DST.tmp` item by item and renames it to `DST` when everything is there.

    Args:
        destination: the checkpoint directory to appear.
        identity: what is being written, as a digest; unfinished work of another identity is not resumed.
        overwrite: replace a finished checkpoint (only at the end) and discard foreign unfinished work.

    Raises:
        InputError: the destination exists and `overwrite` is off, or cannot be written.
    """

    def __init__(self, destination: Path, *, identity: str, overwrite: bool = False) -> None:
        self._destination = destination
        self._temporary = destination.with_name(destination.name + ".tmp")
        if destination.exists() and not overwrite:
            raise InputError(
                f"{destination}: exists already; pass `overwrite=True` to replace it or name another folder"
            )
        if destination.exists() and not (destination / MANIFEST).exists():
            raise InputError(
                f"{destination}: exists and is not a checkpoint, so it is not overwritten; name another folder"
            )
        try:
            self._open(identity, overwrite)
        except OSError as error:
            raise InputError(
                f"{destination}: cannot be written ({error.strerror}); name a writable folder"
            ) from error

    def _open(self, identity: str, overwrite: bool) -> None:
        marker = self._temporary / _IDENTITY
        if self._temporary.exists():
            if not marker.exists():
                # Either our own folder before its first file, or somebody else's that happens to have this name.
                if {path.name for path in self._temporary.rglob("*")} - _EMPTY:
                    raise InputError(
                        f"{self._temporary}: is in the way and not ours; move it or name another folder"
                    )
            elif marker.read_text(encoding="utf-8") != identity:
                if not overwrite:
                    raise InputError(
                        f"{self._temporary}: holds an unfinished conversion of other sources; "
                        f"pass `overwrite=True` to discard it or name another folder"
                    )
                shutil.rmtree(self._temporary)
        (self._temporary / _JOURNAL).mkdir(parents=True, exist_ok=True)
        write_atomically(marker, identity.encode())

    def finished_items(self) -> dict[str, dict[str, Leaf]]:
        """`component/item` -> leaf specifications, for every item that is whole on disk."""
        journal = sorted((self._temporary / _JOURNAL).glob("*.json"))
        entries = [json.loads(path.read_text(encoding="utf-8")) for path in journal]
        return {entry["item"]: entry["leaves"] for entry in entries}

    def write_item(
        self,
        component: str,
        item: str,
        leaves: Mapping[str, np.ndarray],
        *,
        rows: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Store one item; when this returns it survives a power cut. `rows` marks parts of large leaves."""
        directory = self._temporary / component / item
        # Left by an interruption between Orbax's commit and the journal entry.
        shutil.rmtree(directory, ignore_errors=True)
        with _saving():
            ocp.save(directory.absolute(), dict(leaves))  # Orbax takes no relative path
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
        """
        directory = self._temporary / component / item
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(source / component / item, directory, copy_function=_link)
        self._enter(component, item, specifications)

    def _enter(self, component: str, item: str, specifications: Mapping[str, Leaf]) -> None:
        entry = {"item": f"{component}/{item}", "leaves": specifications}
        name = hashlib.sha256(entry["item"].encode()).hexdigest()[:32]
        write_atomically(self._temporary / _JOURNAL / f"{name}.json", json.dumps(entry).encode())

    def write_file(self, relative: str, content: bytes) -> None:
        """Store a plain file (a tokenizer) inside the checkpoint."""
        path = self._temporary / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)

    def finish(self, data: dict[str, Any], order: Mapping[str, list[str]]) -> Manifest:
        """Write the manifest and rename into place.

        Args:
            data: manifest fields; `data["components"][name]["config"]` must be there, items are added here.
            order: component -> its items, in the order in which loading reads them.
        """
        finished = self.finished_items()
        for component, items in order.items():
            data["components"][component]["items"] = {
                item: finished[f"{component}/{item}"] for item in items
            }
        data = sealed({"format_version": FORMAT_VERSION, **data})
        Manifest(
            self._destination, data
        )  # what no reader would take is refused before it has its final name
        write_atomically(self._temporary / MANIFEST, json.dumps(data, indent=1).encode())
        # Journal and identity stay until the end: interrupted anywhere here, the same call finishes the job.
        old = self._destination.with_name(self._destination.name + ".old")
        if self._destination.exists():
            shutil.rmtree(old, ignore_errors=True)
            self._destination.rename(old)
        self._temporary.rename(self._destination)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self._destination / _JOURNAL)
        (self._destination / _IDENTITY).unlink()
        return Manifest(self._destination, data)


def _saving() -> ocp.Context:
    """Plain bytes in chunks of `CHUNK_BYTES`: weights hardly shrink, and to decompress them takes most of a load's processor time."""
    context = ocp.Context()
    saving = context.array.saving
    saving.use_compression, saving.storage_options.chunk_byte_size = False, CHUNK_BYTES
    return context


def _link(source: str, destination: str) -> None:
    """Hard-link a file, or copy it where the file system has no links; safe, since finished items are never written to."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, and is on the disk when this returns."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def digest(array: np.ndarray) -> str:
    """sha256 of the array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
