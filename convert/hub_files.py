"""The files of the hub that a conversion reads, by their places on this machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted.files import TOKENIZER

if TYPE_CHECKING:
    from qsjax.hub import File, Listing


class HubFiles:
    """Files of the hub; of other files it knows nothing.

    Args:
        offline: use no network.
    """

    def __init__(self, *, offline: bool = False) -> None:
        self.offline = offline
        self._places: dict[Path, tuple[Listing, str]] = {}

    def add(self, listing: "Listing", names: Iterable[str]) -> list[Path]:
        """Know these files of a repository; returns their places.

        Raises:
            InputError: no network may be used, and one of them is not here.
        """
        from qsjax.hub import require_network

        wanted = list(names)
        require_network(listing, wanted, offline=self.offline)
        places = [listing.root / name for name in wanted]
        self._places |= {place: (listing, name) for place, name in zip(places, wanted, strict=True)}
        return places

    def small(self, listing: "Listing", names: Iterable[str]) -> None:
        """Know these files and have them here: configurations, indexes, tokenizers.

        Raises:
            InputError: the hub does not give one, or it is larger than such a file can be.
            CheckpointError: one arrives damaged.
        """
        for path in self.add(listing, names):
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

    def stamp(self, path: Path) -> list[str | int]:
        """What changes when a file does: what the hub says of it, or the time of its last change."""
        file = self.listed(path)
        if file is not None:
            return [path.name, file.size, file.sha256 or file.git or ""]
        return [path.name, path.stat().st_size, path.stat().st_mtime_ns]

    def fetch(self, path: Path) -> None:
        """Have a file here, if it is one of the hub.

        Raises:
            InputError: the hub does not give it, or the disk does not take it.
            CheckpointError: it arrives damaged.
        """
        if path in self._places:
            from qsjax.hub import fetch

            fetch(*self._places[path])

    def fetch_all(self) -> None:
        """Have all of them here.

        Raises:
            InputError, CheckpointError: as `fetch`.
        """
        for path in self._places:
            self.fetch(path)

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
