"""The files of an address: what is on disk, what the hub's own cache has, and what has to be fetched."""

import logging
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from qsjax.cache import cache_directory
from qsjax.errors import InputError
from qsjax.hub.address import Address
from qsjax.hub.explaining import explained
from qsjax.hub.fetching import fetch_file, held, intact
from qsjax.hub.listing import File, Listing, ask, remember, remembered

logger = logging.getLogger(__name__)

_HASHED = 32 << 20
"""Bytes that are hashed in no time."""


def look(address: Address, *, offline: bool = False) -> Listing:
    """What the hub has at an address; of files, nothing is fetched.

    Args:
        address: of a model, or a folder or file of one.
        offline: take the last answer from `qsjax.cache.cache_directory()`; HF_HUB_OFFLINE has the same effect.

    Raises:
        InputError: there is no such model or revision, it needs a token, or the hub cannot be reached; offline: it was never asked.
        CheckpointError: the hub names files or a commit that cannot be; a record is damaged.
    """
    home = cache_directory() / "hub" / address.repo.replace("/", "--")
    if offline or constants.HF_HUB_OFFLINE:
        commit, files = remembered(address, home)
    else:
        commit, files = ask(address)
        remember(address, home, commit, files)
    return Listing(address, commit, files, home / commit)


def require_network(listing: Listing, names: Iterable[str], *, offline: bool) -> None:
    """Refuse files that are not on disk where no network may be used.

    Raises:
        InputError: says how many.
    """
    wanted = list(names)
    absent = [name for name in wanted if not is_there(listing, name)]
    if absent and (offline or constants.HF_HUB_OFFLINE):
        raise InputError(
            f"{listing.address}: {len(absent)} of {len(wanted)} files are not here ({absent[0]}, ...); "
            f"do the same once with a network"
        )


def is_there(listing: Listing, name: str) -> bool:
    """Whether a file is on disk: it gets its name only when it is complete. One in the hub's own cache is linked to.

    What takes no time is hashed each time. Weights are not: a conversion hashes them anyway.

    Raises:
        InputError: the link cannot be made.
    """
    path, file = listing.root / name, listing.files[name]
    return _complete(path, file) or _linked(listing, name, path, file)


def fetch(listing: Listing, name: str) -> Path:
    """Download a file unless it is here; an interrupted download goes on inside the file.

    Returns:
        Where it is.

    Raises:
        InputError: the hub does not give it, or the disk does not take it; what was fetched stays.
        CheckpointError: it arrives damaged twice.
    """
    path, file = listing.root / name, listing.files[name]
    if not is_there(listing, name):
        with explained(listing.address, name):
            path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("%s: %.2f GB from the hub", name, file.size / 1e9)
        fetch_file(listing.address, listing.commit, name, path, file)
    return path


def _complete(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return file.size > _HASHED or intact(path, file)


def _linked(listing: Listing, name: str, path: Path, file: File) -> bool:
    """Link to the file in the hub's own cache, where another program may have left it; False if it is not there."""
    cached = try_to_load_from_cache(listing.address.repo, name, revision=listing.commit)
    if (
        not isinstance(cached, str)
        or not _complete(Path(cached), file)
        or not intact(Path(cached), file)
    ):
        return False
    with (
        explained(listing.address, name),
        held(listing.address, listing.commit, name, path),
    ):
        if not _complete(path, file):
            path.unlink(missing_ok=True)
            path.symlink_to(Path(cached).resolve())
    return True
