"""Downloading one file: append what is missing, check the checksum, then give it its name."""

import hashlib
import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import hf_hub_url

from qsjax.errors import CheckpointError, InputError
from qsjax.hub.address import Address
from qsjax.hub.asking import LEAST, Unavailable, answer, patiently
from qsjax.hub.explaining import explained
from qsjax.hub.listing import File
from qsjax.locks import lock
from qsjax.progress import Progress

logger = logging.getLogger(__name__)

PART = ".part"
"""Suffix of a file that is not complete yet."""
_HASH_BLOCK = 8 << 20
_SHOWN = 64 << 20
"""Bytes of a file that is worth a bar."""


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
            with explained(address, name), part.open("ab") as out:
                if out.tell() > file.size:
                    out.truncate(0)
                    out.seek(0)
                _append(out, url, file.size, path.name)
                out.flush()
                os.fsync(out.fileno())
            if intact(part, file):
                part.replace(path)
                return
            part.unlink()
            logger.warning("%s: is not what the hub has; it is fetched again", name)
    raise CheckpointError(
        f"{address}: {name} arrives damaged (its checksum is not the hub's); try again later"
    )


def held(address: Address, commit: str, name: str, path: Path) -> AbstractContextManager[bool]:
    """Hold a file, whole or in part, as `qsjax.locks.lock` does."""
    part = path.with_name(path.name + PART)
    return lock(part, doing="download", identity=f"{address.repo}@{commit}/{name}")


def _append(out: BinaryIO, url: str, size: int, title: str) -> None:
    """Fetch what a file lacks of its size."""
    bar = Progress(size, title, unit="B", initial=out.tell(), enabled=size >= _SHOWN)

    def ask() -> bool:
        begun = out.tell()
        if begun == size:
            return True
        try:
            with answer(url, first=begun) as (first, blocks):
                if first != begun:  # a server that knows no ranges begins anew
                    out.truncate(first)
                    out.seek(first)
                    begun = first
                for block in blocks:
                    if out.tell() + len(block) > size:
                        raise InputError(
                            f"the hub sends more than the {size} bytes that it lists; try again later"
                        )
                    out.write(block)
                    bar.advance(len(block))
            if out.tell() < size:
                raise Unavailable("the hub ends the file early")
        except Unavailable:
            if out.tell() - begun < LEAST:
                raise
        return out.tell() == size

    with bar:
        patiently(ask)


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
