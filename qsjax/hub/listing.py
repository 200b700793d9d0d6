"""The files of a model: the hub's listing, as far as a conversion reads it, and a record of it for offline use."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants

from qsjax.errors import CheckpointError, InputError
from qsjax.hub.address import SCHEME, WEIGHTS, Address
from qsjax.hub.asking import answer
from qsjax.hub.explaining import explained
from qsjax.untrusted import parse_object, read_object, require_relative, shown
from qsjax.untrusted.files import LARGE

WANTED = (*WEIGHTS, ".json", ".txt")
MOST_FILES = 10_000
LARGEST_FILE = 10**13
"""Bytes."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """What the hub says of a file; one of the digests is there.

    Attributes:
        size: bytes.
        sha256: of the content; None for small files, which git keeps.
        git: git's own digest of it, SHA-1 with a header; None if `sha256` is there.
    """

    size: int
    sha256: str | None
    git: str | None


@dataclass(frozen=True)
class Listing:
    """What the hub has at an address.

    Attributes:
        address: of a folder or a file.
        commit: of its revision.
        files: by name in the repository: what a conversion may read of a folder and all below; of a file, and what lies beside it.
        root: where the repository's files are on this machine, or will be.
    """

    address: Address
    commit: str
    files: Mapping[str, File]
    root: Path

    @property
    def is_file(self) -> bool:
        """Whether the address is one of a file."""
        return self.address.path in self.files

    @property
    def folder(self) -> str:
        """The folder in the repository: that of the address, or that of its file; "" is the root."""
        folder, _, _ = self.address.path.rpartition("/")
        return folder if self.is_file else self.address.path

    @property
    def path(self) -> Path:
        """Where the folder or file is on this machine, or will be."""
        return self.root / self.address.path

    def below(self) -> frozenset[str]:
        """The names of the files as the folder has them."""
        begin = f"{self.folder}/" if self.folder else ""
        return frozenset(name[len(begin) :] for name in self.files if name.startswith(begin))

    def at(self, path: str) -> "Listing":
        """The same of a folder or file further in."""
        return replace(self, address=replace(self.address, path="" if path == "." else path))

    def name(self, below: str) -> str:
        """The name in the repository of what the folder calls so."""
        return f"{self.folder}/{below}" if self.folder else below

    def pinned(self, name: str) -> str:
        """The address of a file with its commit, as a record of where it came from."""
        return str(replace(self.address, path=name, revision=self.commit))


def ask(address: Address) -> tuple[str, dict[str, File]]:
    """The current commit of a revision, and those of its files that a conversion may read.

    Raises:
        InputError: the hub does not give it, or has nothing there that a conversion reads.
        CheckpointError: what the hub gives is no listing, or names files or a commit that cannot be.
    """
    url = f"{constants.ENDPOINT}/api/models/{address.repo}/revision/{quote(address.revision, safe='')}?blobs=true"
    content = bytearray()

    with explained(address), answer(url) as blocks:
        for block in blocks:
            content.extend(block)
            if len(content) > LARGE:
                raise InputError(
                    f"the hub's listing has more than {LARGE} bytes; name another model"
                )
    place = f"{address}: the hub's listing"
    listing = parse_object(bytes(content), place)
    siblings = listing.get("siblings")
    if not isinstance(siblings, list) or not all(isinstance(entry, dict) for entry in siblings):
        raise CheckpointError(f"{place} has no list of files; look whether HF_ENDPOINT is a hub")
    if len(siblings) > MOST_FILES:
        raise CheckpointError(
            f"{place} names {len(siblings)} files, more than {MOST_FILES}; name another model"
        )
    return _commit(place, listing.get("sha")), _wanted(address, siblings)


def _commit(where: str, commit: object) -> str:
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise CheckpointError(
            f"{where}: names {shown(commit)}, which is no commit; do the same once more"
        )
    return commit


def _wanted(address: Address, siblings: Iterable[Mapping[str, Any]]) -> dict[str, File]:
    """The files of the address that a conversion may read; of a file's, those of its folder."""
    single = any(sibling.get("rfilename") == address.path for sibling in siblings)
    folder = address.path.rpartition("/")[0] if single else address.path
    begin = f"{folder}/" if folder else ""
    files = {}
    for sibling in siblings:
        name, lfs = sibling.get("rfilename"), sibling.get("lfs")
        if isinstance(name, str) and not (
            name.startswith(begin)
            and name.endswith(WANTED)
            and not (single and "/" in name.removeprefix(begin))
        ):
            continue
        digests = lfs if isinstance(lfs, dict) else {}
        values = {"size": sibling.get("size"), "sha256": digests.get("sha256"), "git": sibling.get("blobId")}  # fmt: skip
        name = require_relative(name, f"{address}: a file of the listing")
        files[name] = _file(str(address), name, values)
    _check_folders(str(address), files)
    if not files:
        raise InputError(
            f"{address}: holds nothing that is converted ({', '.join(WANTED)}); name a model, or a folder or file of it"
        )
    return dict(sorted(files.items()))


def _file(where: str, name: str, values: Mapping[str, object]) -> File:
    size, sha256, git = values.get("size"), values.get("sha256"), values.get("git")
    if type(size) is not int or not 0 <= size <= LARGEST_FILE:
        raise CheckpointError(
            f"{where}: {name} is listed with the size {shown(size)}, which is no number of bytes; try again later"
        )
    if isinstance(sha256, str) and _SHA256.fullmatch(sha256):
        return File(size, sha256, None)
    if sha256 is None and isinstance(git, str) and _COMMIT.fullmatch(git):
        return File(size, None, git)
    raise CheckpointError(
        f"{where}: {name} is listed with the checksums {shown(sha256)} and {shown(git)}, which are none; try again later"
    )


def _check_folders(where: str, files: Mapping[str, File]) -> None:
    """No file is a folder of another one."""
    for name in files:
        for parent in PurePosixPath(name).parents:
            if str(parent) in files:
                raise CheckpointError(
                    f"{where}: lists {shown(str(parent))} as a file and as a folder; try again later"
                )


def remember(address: Address, home: Path, commit: str, files: Mapping[str, File]) -> None:
    """Record the commit and the files of this address, for a run without a network.

    Raises:
        InputError: it cannot be written.
    """
    path = _record(address, home)
    content = {
        "address": str(address),
        "commit": commit,
        "files": {name: vars(file) for name, file in files.items()},
    }
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with explained(address):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(path)


def remembered(address: Address, home: Path) -> tuple[str, dict[str, File]]:
    """The last record that `remember` made.

    Raises:
        InputError: there is none.
        CheckpointError: it is damaged.
    """
    path = _record(address, home)
    if not path.exists():
        raise InputError(
            f"{address}: was not downloaded, and no network may be used (`offline=True` or HF_HUB_OFFLINE); "
            f"do the same once with one"
        )
    named, commit, files = read_record(path)
    if named not in (None, str(address)):
        raise CheckpointError(f"{path}: is of {shown(named)}; do the same once with a network")
    return commit, files


def read_record(path: Path) -> tuple[str | None, str, dict[str, File]]:
    """A record of `remember`: its address, None in an old one, the commit and the files.

    Raises:
        InputError: it cannot be read.
        CheckpointError: it is damaged.
    """
    content = read_object(path)
    files, named = content.get("files"), content.get("address")
    if (
        not isinstance(files, dict)
        or len(files) > MOST_FILES
        or not all(isinstance(file, dict) for file in files.values())
    ):
        raise CheckpointError(f"{path}: is no record of files; do the same once with a network")
    checked = {
        require_relative(name, f"{path}: a file"): _file(str(path), name, file)
        for name, file in files.items()
    }
    _check_folders(str(path), checked)
    commit = _commit(str(path), content.get("commit"))
    return (named if isinstance(named, str) else None), commit, checked


def _record(address: Address, home: Path) -> Path:
    name = str(address).removeprefix(SCHEME).replace("/", "--")
    return home / f"{name}.json"
