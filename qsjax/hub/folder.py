"""A model's folder: what is on disk, what the hub's own cache has, and what has to be fetched."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from qsjax.cache import cache_directory
from qsjax.errors import InputError, QsjaxError
from qsjax.hub.address import Address
from qsjax.hub.explaining import explained
from qsjax.hub.fetching import PART, fetch, held, intact
from qsjax.hub.listing import File, ask, read_record, remember, remembered

logger = logging.getLogger(__name__)

_HASHED = 32 << 20
"""Bytes that are hashed in no time."""


def download(address: Address, *, offline: bool = False) -> tuple[Path, str]:
    """The model's weights, configurations and tokenizers on disk, under `qsjax.cache.cache_directory()`.

    Files on disk and in the hub's own cache are not fetched again. The others are fetched one by one; an interrupted
    download resumes inside the file where it stopped.

    Args:
        address: what to fetch.
        offline: use no network; HF_HUB_OFFLINE has the same effect.

    Returns:
        The folder, and its commit.

    Raises:
        InputError: there is no such model, it needs a token, the disk is too small, or the hub cannot be reached; offline: the
            model is not here, or not all of it.
        CheckpointError: a file arrives damaged twice; the hub names files or a commit that cannot be; a record is damaged.
    """
    home = cache_directory() / "hub" / address.repo.replace("/", "--")
    if offline or constants.HF_HUB_OFFLINE:
        commit, files = remembered(address, home)
    else:
        commit, files = ask(address)
        remember(address, home, commit, files)
    root = home / commit
    missing = {name: file for name, file in files.items() if not _there(root / name, file)}
    if missing and (offline or constants.HF_HUB_OFFLINE):
        raise InputError(
            f"{address}: {len(missing)} of {len(files)} files are not here ({next(iter(missing))}, ...); "
            f"do the same once with a network"
        )
    for name in list(missing):
        if _linked(address, commit, name, root / name, missing[name]):
            del missing[name]
    _check_space(address, root, missing)
    for number, (name, file) in enumerate(missing.items(), 1):
        logger.info("%s: file %d of %d, %.2f GB", name, number, len(missing), file.size / 1e9)
        fetch(address, commit, name, root / name, file)
    return root / address.folder, commit


def _there(path: Path, file: File) -> bool:
    """Whether the file is complete: it gets its name only then.

    What takes no time is hashed each time. Weights are not: a conversion hashes them anyway (`listed_sha256`).
    """
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return file.size > _HASHED or intact(path, file)


def listed_sha256(path: Path) -> str | None:
    """What the hub says a downloaded file's SHA-256 is; None for another file, or where no record tells.

    Args:
        path: as `download` gives it, or below.
    """
    place = cache_directory() / "hub"
    if not path.is_relative_to(place):
        return None
    home, commit, *names = path.relative_to(place).parts
    for record in sorted((place / home).glob("*.json")):
        with suppress(QsjaxError):  # a damaged record says nothing of this file
            _, found, files = read_record(record)
            if found == commit and "/".join(names) in files:
                return files["/".join(names)].sha256
    return None


def _linked(address: Address, commit: str, name: str, path: Path, file: File) -> bool:
    """Link to the file in the hub's own cache, where another program may have left it; False if it is not there."""
    cached = try_to_load_from_cache(address.repo, name, revision=commit)
    if (
        not isinstance(cached, str)
        or not _there(Path(cached), file)
        or not intact(Path(cached), file)
    ):
        return False
    with explained(address, name), held(address, commit, name, path):
        if not _there(path, file):
            path.unlink(missing_ok=True)
            path.symlink_to(Path(cached).resolve())
    return True


def _check_space(address: Address, root: Path, missing: Mapping[str, File]) -> None:
    with explained(address):
        root.mkdir(parents=True, exist_ok=True)
    begun = sum(path.stat().st_size for path in root.rglob(f"*{PART}"))
    needed, free = sum(file.size for file in missing.values()) - begun, shutil.disk_usage(root).free
    if needed > free:
        raise InputError(
            f"{address}: {needed / 1e9:.1f} GB are to be downloaded and {free / 1e9:.1f} GB of disk are free; "
            f"make room, or name another place by QSJAX_CACHE"
        )
    if missing:
        logger.info(
            "%s: %.2f GB to download, %.2f GB of disk are free", address, needed / 1e9, free / 1e9
        )
