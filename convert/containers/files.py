"""Where sources have their files: on the disk, as here, or elsewhere, as a subclass knows."""

import os
from collections.abc import Iterable
from pathlib import Path

from convert.containers.folder import INDEX
from convert.containers.safetensors_file import SafetensorsFile
from convert.containers.source import Source


class Files:
    """Files on the disk.

    Attributes:
        deletes: files are fetched one by one and deleted when they are needed no more, as far as they may be.
    """

    deletes = False

    def require_here(self, paths: Iterable[Path]) -> None:
        """Refuse files that are not here and cannot be fetched.

        Raises:
            InputError: says which.
        """

    def may_delete(self, path: Path) -> bool:
        """Whether `release` deletes a file."""
        return False

    def release(self, path: Path) -> None:
        """A file is needed no more: its tensors are written, and it is hashed.

        Raises:
            DiskError: it is to be deleted, and the disk refuses.
        """

    def is_there(self, path: Path) -> bool:
        """Whether there is such a file, or will be when it is fetched."""
        return os.path.isfile(path)  # also of a name that is too long for the file system

    def size(self, path: Path) -> int:
        """Its size in bytes."""
        return path.stat().st_size

    def stamp(self, path: Path) -> list[str | int]:
        """What changes when the file does."""
        return [path.name, self.size(path), path.stat().st_mtime_ns]

    def has_header(self, path: Path) -> bool:
        """Whether it can be opened before all of it is fetched."""
        return path.name.endswith(".safetensors") or INDEX.search(path.name) is not None

    def missing(self, path: Path) -> int:
        """Bytes of it that are to be fetched."""
        return 0

    def fetch(self, path: Path) -> None:
        """Have it here."""

    def open_safetensors(self, path: Path) -> Source:
        """Open a safetensors file; it need not be here before a tensor is read.

        Raises:
            InputError: it cannot be opened.
            CheckpointError: it is damaged.
        """
        return SafetensorsFile(path)

    def origin(self, path: Path) -> str | None:
        """The address where it was published; None for a file of this machine."""
        return None

    def require_listed(self, path: Path, sha256: str) -> None:
        """Compare its SHA-256 with what is known of it.

        Raises:
            CheckpointError: it is another one.
        """


ON_DISK = Files()
