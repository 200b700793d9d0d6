"""The files of an address: what is on disk, what the hub's own cache has, and what has to be fetched."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from qsjax.cache import cache_directory
from qsjax.errors import InputError, QsjaxError
from qsjax.hub.address import Address
from qsjax.hub.explaining import explained
from qsjax.hub.fetching import begun, fetch_beginning, fetch_file, held, intact
from qsjax.hub.listing import File, Listing, ask, read_record, remember, remembered
from qsjax.untrusted import open_regular

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
        # Under the commit too, by which its files are found when the branch has moved on.
        for revision in dict.fromkeys((commit, address.revision)):
            remember(replace(address, revision=revision), home, commit, files)
    return Listing(address, commit, files, home / commit)


def require_network(listing: Listing, names: Iterable[str], *, offline: bool) -> None:
    """Refuse files that are not on disk where no network may be used.

    Raises:
        InputError: says how many.
    """
    if not (offline or constants.HF_HUB_OFFLINE):
        return
    wanted = list(names)
    absent = [name for name in wanted if not is_there(listing, name)]
    if absent:
        raise InputError(
            f"{listing.address}: {len(absent)} of {len(wanted)} files are not here ({absent[0]}, ...); "
            f"do the same once with a network"
        )


def is_there(listing: Listing, name: str) -> bool:
    """Whether a file is on disk: it gets its name only when it is complete. The same one of another commit, or in the hub's own
    cache, is linked to.

    What takes no time is hashed each time. Weights are not: a conversion hashes them anyway.

    Raises:
        InputError: the link cannot be made.
    """
    path, file = listing.root / name, listing.files[name]
    return _complete(path, file) or any(
        _linked(listing, name, path, file, other) for other in _elsewhere(listing, name, file)
    )


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


def missing(listing: Listing, name: str) -> int:
    """Bytes of a file that are still to be fetched."""
    if is_there(listing, name):
        return 0
    return listing.files[name].size - begun(listing.root / name, listing.files[name].size)


def beginning(listing: Listing, name: str, nbytes: int) -> bytes:
    """The first bytes of a file, which need not be here; what is fetched of it is not fetched again.

    Args:
        listing: of its repository.
        name: of it.
        nbytes: how many; of a smaller file, all.

    Raises:
        InputError: as `fetch`.
    """
    path, file = listing.root / name, listing.files[name]
    wanted = min(nbytes, file.size)
    if is_there(listing, name):
        with open(open_regular(path), "rb") as content:
            return content.read(wanted)
    return fetch_beginning(listing.address, listing.commit, name, path, file, wanted)


def _complete(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return file.size > _HASHED or intact(path, file)


def _elsewhere(listing: Listing, name: str, file: File) -> Iterator[Path]:
    """Where the same file may be: in the hub's own cache, where another program left it, and of commits that were here before."""
    cached = try_to_load_from_cache(listing.address.repo, name, revision=listing.commit)
    if isinstance(cached, str):
        yield Path(cached)
    for record in sorted(listing.root.parent.glob("*.json")) if file.sha256 else ():
        with suppress(QsjaxError):  # a damaged record says nothing
            _, commit, files = read_record(record)
            if commit != listing.commit and files.get(name) == file:
                yield listing.root.parent / commit / name


def _linked(listing: Listing, name: str, path: Path, file: File, other: Path) -> bool:
    """Link to a file that is the same; False if it is not."""
    if not _complete(other, file) or not intact(other, file):
        return False
    with (
        explained(listing.address, name),
        held(listing.address, listing.commit, name, path),
    ):
        if not _complete(path, file):
            path.unlink(missing_ok=True)
            path.symlink_to(other.resolve())
    return True
