"""Downloading one file: append what is missing, check the checksum, then give it its name."""

import hashlib
import logging
import os
from pathlib import Path

from huggingface_hub import hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from qsjax.errors import CheckpointError
from qsjax.hub.address import Address
from qsjax.hub.explaining import explained
from qsjax.hub.listing import File

logger = logging.getLogger(__name__)

PART = ".part"
"""Suffix of a file that is not complete yet."""
_HASH_BLOCK = 8 << 20


def fetch(address: Address, commit: str, name: str, path: Path, file: File) -> None:
    """Download a file, or the rest of it. A power cut may leave anything at its end: if the checksum is wrong, all of it is fetched again.

    Args:
        address, commit, name: of the file.
        path: where it is to appear.
        file: its size and checksum.

    Raises:
        InputError: the hub does not give it, or the disk does not take it; what was fetched stays.
        CheckpointError: it arrives damaged twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    for _ in range(2):
        with explained(address, name), part.open("ab") as out:
            if out.tell() > file.size:
                out.truncate(0)
            if (begun := out.tell()) < file.size:
                http_get(
                    hf_hub_url(address.repo, name, revision=commit),
                    out,
                    resume_size=begun,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=path.name,
                )
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
