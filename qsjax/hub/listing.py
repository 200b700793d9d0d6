"""The files of a model: the hub's listing, as far as a conversion reads it, and a record of it for offline use."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoSibling

from qsjax.errors import CheckpointError, InputError
from qsjax.hub.address import SCHEME, Address
from qsjax.hub.explaining import explained

WANTED = (".safetensors", ".pt", ".json", ".txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class File:
    """What the hub says of a file.

    Attributes:
        size: bytes.
        sha256: of the content; None for small files, which git keeps.
        git: git's own digest of it, SHA-1 with a header.
    """

    size: int
    sha256: str | None
    git: str | None


def ask(address: Address) -> tuple[str, dict[str, File]]:
    """The current commit of a revision, and those of its files that a conversion may read.

    Raises:
        InputError: the hub does not give it, or it holds no weights.
        CheckpointError: the hub names files or a commit that cannot be.
    """
    with explained(address):
        info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True)
    commit, files = str(info.sha), _listing(address, info.siblings or ())
    if not _COMMIT.fullmatch(commit):
        raise CheckpointError(f"{address}: the hub names {commit!r}, which is no commit")
    return commit, files


def _listing(address: Address, siblings: Iterable[RepoSibling]) -> dict[str, File]:
    """The files that a conversion may read; a .pt beside safetensors is left out, since it holds the same weights."""
    inside = f"{address.folder}/" if address.folder else ""
    files = {}
    for sibling in siblings:
        path = PurePosixPath(sibling.rfilename)
        if not sibling.rfilename.startswith(inside) or path.suffix not in WANTED:
            continue
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in sibling.rfilename
            or path.parts[0].startswith(".")
        ):
            raise CheckpointError(
                f"{address}: lists {sibling.rfilename!r}, which is no name of a file in a folder"
            )
        files[sibling.rfilename] = File(
            sibling.size or 0,
            None if sibling.lfs is None else sibling.lfs.sha256,
            sibling.blob_id,
        )
    safe = {PurePosixPath(name).parent for name in files if name.endswith(".safetensors")}
    files = {
        name: file
        for name, file in sorted(files.items())
        if not (name.endswith(".pt") and PurePosixPath(name).parent in safe)
    }
    if not any(name.endswith((".safetensors", ".pt")) for name in files):
        raise InputError(
            f"{address}: holds no weights (.safetensors or .pt); name a model, or another folder of it"
        )
    return files


def remember(address: Address, home: Path, commit: str, files: Mapping[str, File]) -> None:
    """Record the commit and the files of this address, for a run without a network."""
    path = _record(address, home)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"commit": commit, "files": {name: vars(file) for name, file in files.items()}}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)


def remembered(address: Address, home: Path) -> tuple[str, dict[str, File]]:
    """The last record that `remember` made.

    Raises:
        InputError: there is none.
    """
    try:
        content = json.loads(_record(address, home).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{address}: was not downloaded, and no network may be used (`offline=True` or HF_HUB_OFFLINE); "
            f"do the same once with one"
        ) from error
    return content["commit"], {name: File(**file) for name, file in content["files"].items()}


def _record(address: Address, home: Path) -> Path:
    name = str(address).removeprefix(SCHEME).replace("/", "--")
    return home / f"{name}.json"
