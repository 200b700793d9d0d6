"""The files of the hub that a conversion reads, by their places on this machine."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from convert.containers.files import Files
from convert.containers.promised import PromisedSafetensors
from convert.containers.safetensors_file import header_end
from convert.containers.source import Source
from qsjax.cache import cache_directory
from qsjax.disk import beside, remove, write_atomically, writing
from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import read_bytes
from qsjax.untrusted.files import TOKENIZER

if TYPE_CHECKING:
    from qsjax.hub import File, Listing

logger = logging.getLogger("qsjax.convert")

HEAD = ".head"
"""Suffix of what is kept of a file that was deleted."""
_LARGEST_HEAD = 96 << 20
_HEADER = 1 << 17
"""Bytes in which most headers end: a thousand tensors."""


class HubFiles(Files):
    """Files of the hub and of the disk; those of the hub are fetched when they are needed.

    Args:
        offline: use no network.
        deletes: delete safetensors files of our cache when they are needed no more; their heads stay.
    """

    def __init__(self, *, offline: bool = False, deletes: bool = False) -> None:
        self.offline, self.deletes = offline, deletes
        self._places: dict[Path, tuple[Listing, str]] = {}
        self._promised: dict[Path, list[PromisedSafetensors]] = {}

    def add(self, listing: "Listing", names: Iterable[str]) -> list[Path]:
        """Know these files of a repository; returns their places."""
        wanted = list(names)
        places = [listing.root / name for name in wanted]
        self._places |= {place: (listing, name) for place, name in zip(places, wanted, strict=True)}
        return places

    def small(self, listing: "Listing", names: Iterable[str]) -> None:
        """Know these files and have them here: configurations, indexes, tokenizers.

        Raises:
            InputError: the hub does not give one, or it is larger than such a file can be.
            CheckpointError: one arrives damaged.
        """
        paths = self.add(listing, names)
        self.require_here(paths)
        for path in paths:
            self.require_small(path)
            self.fetch(path)

    def require_small(self, path: Path) -> None:
        """Refuse a file that is too large for what it should be, before it is fetched.

        Raises:
            InputError: it is.
        """
        listing, name = self._places[path]
        if listing.files[name].size > TOKENIZER:
            raise InputError(
                f"{listing.address}: {name} has {listing.files[name].size} bytes, far more than such a file needs; name another model"
            )

    def listed(self, path: Path) -> "File | None":
        """What the hub says of a file; None for one that is not of the hub."""
        if path not in self._places:
            return None
        listing, name = self._places[path]
        return listing.files[name]

    def origin(self, path: Path) -> str | None:
        """The address of a file with its commit; None for one that is not of the hub."""
        if path not in self._places:
            return None
        listing, name = self._places[path]
        return listing.pinned(name)

    def require_here(self, paths: Iterable[Path]) -> None:
        """Refuse files of the hub that are not here, where no network may be used.

        Raises:
            InputError: says how many.
        """
        from qsjax.hub import require_network

        names: dict[Path, list[Path]] = {}
        for path in paths:
            if path in self._places:
                names.setdefault(self._places[path][0].root, []).append(path)
        for places in names.values():
            listing, _ = self._places[places[0]]
            wanted = [self._places[path][1] for path in places]
            require_network(listing, wanted, offline=self.offline)

    def is_there(self, path: Path) -> bool:
        """See `Files.is_there`."""
        return path in self._places or super().is_there(path)

    def size(self, path: Path) -> int:
        """See `Files.size`."""
        file = self.listed(path)
        return super().size(path) if file is None else file.size

    def stamp(self, path: Path) -> list[str | int]:
        """What the hub says of a file, whenever it was downloaded; else see `Files.stamp`."""
        file = self.listed(path)
        if file is None:
            return super().stamp(path)
        return [path.name, file.size, file.sha256 or file.git or ""]

    def missing(self, path: Path) -> int:
        """See `Files.missing`."""
        if path not in self._places:
            return 0
        from qsjax.hub import missing

        return missing(*self._places[path])

    def all_missing(self) -> int:
        """Bytes of all files of the hub that are to be fetched."""
        return sum(map(self.missing, self._places))

    def fetch(self, path: Path) -> None:
        """Have a file here, if it is one of the hub.

        Raises:
            InputError: the hub does not give it, or the disk does not take it.
            CheckpointError: it arrives damaged.
        """
        if path in self._places:
            from qsjax.hub import fetch

            self.require_here([path])
            fetch(*self._places[path])

    def open_safetensors(self, path: Path) -> Source:
        """See `Files.open_safetensors`; of a file of the hub the header is fetched."""
        if path not in self._places:
            return super().open_safetensors(path)
        promised = self._from_head(path) or self._from_header(path)
        self._promised.setdefault(path, []).append(promised)
        return promised

    def _from_head(self, path: Path) -> PromisedSafetensors | None:
        """By the head that a file has left behind, if it is not here."""
        head = beside(path, HEAD)
        if not self.missing(path) or not head.is_file():
            return None
        try:
            content = read_bytes(head, _LARGEST_HEAD)
            return PromisedSafetensors(path, content, self.size(path), self.fetch)
        except (CheckpointError, InputError):
            remove(head)
            return None

    def _from_header(self, path: Path) -> PromisedSafetensors:
        from qsjax.hub import beginning

        listing, name = self._places[path]
        size = self.size(path)
        self.require_here([path])
        begin = beginning(listing, name, _HEADER)
        end = header_end(listing.pinned(name), size, begin)
        return PromisedSafetensors(path, beginning(listing, name, end), size, self.fetch)

    def may_delete(self, path: Path) -> bool:
        """A safetensors file that this program has downloaded: no user's file, and no link to another program's."""
        home = cache_directory() / "hub"
        return (
            self.deletes
            and path in self._places
            and path.suffix == ".safetensors"
            and path.is_relative_to(home)
            and not any((home / place).is_symlink() for place in _ways(path.relative_to(home)))
        )

    def release(self, path: Path) -> None:
        """Close a file, and delete it if it may be."""
        if self.may_delete(path) and path.is_file():
            promised = self._promised.get(path) or [self._from_header(path)]
            with writing(path):
                write_atomically(beside(path, HEAD), promised[0].head())
                self._close(path)
                path.unlink()
            logger.info("%s: is deleted, all of it is written", path)
        self._close(path)

    def _close(self, path: Path) -> None:
        for promised in self._promised.get(path, ()):
            promised.close()

    def require_listed(self, path: Path, sha256: str) -> None:
        """Compare the SHA-256 of a file with what the hub says it is.

        Raises:
            CheckpointError: it changed since it was downloaded.
        """
        file = self.listed(path)
        if file is not None and file.sha256 not in (None, sha256):
            raise CheckpointError(
                f"{path}: is not what was downloaded (its SHA-256 is not the hub's); delete it and do the same again"
            )


def _ways(path: Path) -> Iterable[Path]:
    """The path and the folders on the way to it."""
    return (path, *path.parents[:-1])
