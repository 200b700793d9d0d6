"""Downloading one file: fetch what is missing, check the checksum, then give it its name."""

import hashlib
import logging
from contextlib import AbstractContextManager
from pathlib import Path

from huggingface_hub import hf_hub_url

from qsjax.errors import CheckpointError
from qsjax.hub.address import Address
from qsjax.hub.explaining import explained
from qsjax.hub.filling import fill, fill_beginning
from qsjax.hub.listing import File
from qsjax.hub.pieces import Pieces, counted
from qsjax.locks import lock

logger = logging.getLogger(__name__)

PART = ".part"
"""Suffix of a file that is not complete yet."""
_HASH_BLOCK = 8 << 20


def fetch_file(address: Address, commit: str, name: str, path: Path, file: File) -> None:
    """Download a file, or the rest of it; one process at a time, and who has waited finds it there.

    A power cut may leave anything at its end: if the checksum is wrong, all of it is fetched again.

    Args:
        address, commit, name: of the file.
        path: where it is to appear.
        file: its size and checksum.

    Raises:
        InputError: the hub does not give it, or more than it lists, or the disk does not take it; what was fetched stays.
        CheckpointError: it arrives damaged twice.
    """
    part = path.with_name(path.name + PART)
    with held(address, commit, name, path) as waited:
        if waited and path.is_file() and intact(path, file):
            return
        url = hf_hub_url(address.repo, name, revision=commit)
        for _ in range(2):
            with explained(address, name), Pieces(part, file.size) as pieces:
                fill(pieces, url, path.name)
                pieces.finish()
            if intact(part, file):
                part.replace(path)
                return
            part.unlink()
            logger.warning("%s: is not what the hub has; it is fetched again", name)
    raise CheckpointError(
        f"{address}: {name} arrives damaged (its checksum is not the hub's); try again later"
    )


def fetch_beginning(
    address: Address, commit: str, name: str, path: Path, file: File, nbytes: int
) -> bytes:
    """The first bytes of a file; they are kept as its part that is here, which `fetch_file` completes.

    Args:
        address, commit, name, path, file: as `fetch_file` has them.
        nbytes: at most the file's size.

    Raises:
        InputError: as `fetch_file`.
    """
    part = path.with_name(path.name + PART)
    with held(address, commit, name, path):
        if path.is_file():  # by now
            part = path
        else:
            url = hf_hub_url(address.repo, name, revision=commit)
            with explained(address, name), Pieces(part, file.size) as pieces:
                fill_beginning(pieces, url, nbytes)
        with part.open("rb") as content:
            return content.read(nbytes)


def begun(path: Path, size: int) -> int:
    """Bytes that are here of a file that is not complete."""
    return sum(counted(path.with_name(path.name + PART), size))


def held(address: Address, commit: str, name: str, path: Path) -> AbstractContextManager[bool]:
    """Hold a file, whole or in part, as `qsjax.locks.lock` does."""
    part = path.with_name(path.name + PART)
    return lock(part, doing="download", identity=f"{address.repo}@{commit}/{name}")


def intact(path: Path, file: File) -> bool:
    """Whether a file has the hub's checksum."""
    state = (
        hashlib.sha256()
        if file.sha256
        else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    )
    with path.open("rb") as content:
        while block := content.read(_HASH_BLOCK):
            state.update(block)
    return state.hexdigest() == (file.sha256 or file.git)
