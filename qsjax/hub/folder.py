"""A model's folder: what is on disk, what the hub's own cache has, and what has to be fetched."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from qsjax.cache import cache_directory
from qsjax.errors import InputError
from qsjax.hub.address import Address
from qsjax.hub.fetching import PART, fetch, intact
from qsjax.hub.listing import File, ask, remember, remembered

logger = logging.getLogger(__name__)


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
        CheckpointError: a file arrives damaged twice; the hub names files or a commit that cannot be.
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
    """Whether the file is complete: it gets its name only then."""
    return path.is_file() and path.stat().st_size == file.size


def _linked(address: Address, commit: str, name: str, path: Path, file: File) -> bool:
    """Link to the file in the hub's own cache, where another program may have left it; False if it is not there."""
    cached = try_to_load_from_cache(address.repo, name, revision=commit)
    if (
        not isinstance(cached, str)
        or not _there(Path(cached), file)
        or not intact(Path(cached), file)
    ):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(Path(cached).resolve())
    return True


def _check_space(address: Address, root: Path, missing: Mapping[str, File]) -> None:
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
