"""Where the PyTorch files come from: this machine, or the hub."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qsjax.cache import cache_directory
from qsjax.errors import CheckpointError, InputError


def local_source(source: str | None, *, offline: bool = False) -> tuple[Path | None, str | None]:
    """The source as a path, downloaded if it is an address of the hub; and that address with its commit, for the manifest.

    Args:
        source: a path or hf://OWNER/NAME; None where parts are named one by one.
        offline: of an address, use what was downloaded.

    Raises:
        InputError: the download is not possible; `offline` where nothing is of the hub.
        CheckpointError: a file arrives damaged.
    """
    # Imported late: it brings an HTTP client that paths need not wait for.
    if source is not None and source.startswith("hf://"):
        from qsjax.hub import Address, download

        address = Address.parse(source)
        folder, commit = download(address, offline=offline)
        return folder, str(replace(address, revision=commit))
    if offline:
        raise InputError(
            f"`offline=True` is for a model of the hub (hf://OWNER/NAME), and the source is {source}; leave it out"
        )
    return None if source is None else Path(source), None


def require_listed(digests: Mapping[Path, str]) -> None:
    """Compare the SHA-256 of files that were downloaded with what the hub says it is.

    Args:
        digests: of source files; those of another origin are left out.

    Raises:
        CheckpointError: a file changed since it was downloaded.
    """
    for path, digest in digests.items():
        if not path.is_relative_to(cache_directory() / "hub"):
            continue
        from qsjax.hub import listed_sha256

        if listed_sha256(path) not in (None, digest):
            raise CheckpointError(
                f"{path}: is not what was downloaded (its SHA-256 is not the hub's); delete it and do the same again"
            )
