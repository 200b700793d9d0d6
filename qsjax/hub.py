"""Model folders from the Hugging Face hub: resumed to the byte, checked, and found again without a network.

The hub's own client keeps nothing of a file that was begun, and a shard of these models is gigabytes; so its parts are used:
the listing, the headers, one ranged request. A file has its name only when all of it is there and has the hub's checksum.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from qsjax.cache import cache_directory
from qsjax.errors import CheckpointError, InputError

logger = logging.getLogger(__name__)

SCHEME = "hf://"
WANTED = (".safetensors", ".pt", ".json", ".txt")
_ADDRESS = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(?:/[\w.-]+)*)(?:@(?P<revision>[\w./-]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH_BLOCK = 8 << 20


@dataclass(frozen=True)
class Address:
    """Of a model: `hf://OWNER/NAME[/FOLDER][@REVISION]`.

    Attributes:
        repo: owner and name.
        folder: inside the repository; empty for all of it.
        revision: branch, tag or commit.
    """

    repo: str
    folder: str = ""
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Of a string that begins with `hf://`.

        Raises:
            InputError: the rest is not an address.
        """
        found = _ADDRESS.fullmatch(text.removeprefix(SCHEME))
        if (
            not text.startswith(SCHEME)
            or found is None
            or {".", ".."} & set(re.split("[/@]", text))
        ):
            raise InputError(
                f"{text}: is no address; write {SCHEME}OWNER/NAME, or with /FOLDER or @REVISION"
            )
        return cls(found["repo"], found["folder"].lstrip("/"), found["revision"] or "main")

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"{SCHEME}{self.repo}{folder}@{self.revision}"


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


def download(address: Address, *, offline: bool = False) -> tuple[Path, str]:
    """The model's weights, configurations and tokenizers on disk, under `qsjax.cache.cache_directory()`.

    What is there already is not fetched again, nor what the hub's own cache has. Anything else is fetched file by file; after
    a stop the same call goes on inside the file where it stopped.

    Args:
        address: what to fetch.
        offline: ask nobody; so too where HF_HUB_OFFLINE is set.

    Returns:
        The folder, and the commit that it is of.

    Raises:
        InputError: there is no such model, it needs a token, the disk is too small, or the hub cannot be reached; offline: the
            model is not here, or not all of it.
        CheckpointError: a file arrives damaged twice; the hub names files or a commit that cannot be.
    """
    home = cache_directory() / "hub" / address.repo.replace("/", "--")
    if offline or constants.HF_HUB_OFFLINE:
        commit, files = _remembered(address, home)
    else:
        with _explained(address):
            info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True)
        commit, files = str(info.sha), _listing(address, info.siblings or ())
        if not _COMMIT.fullmatch(commit):
            raise CheckpointError(f"{address}: the hub names {commit!r}, which is no commit")
        _remember(address, home, commit, files)
    root = home / commit
    missing = {name: file for name, file in files.items() if not _there(root / name, file)}
    if missing and (offline or constants.HF_HUB_OFFLINE):
        raise InputError(
            f"{address}: {len(missing)} of {len(files)} files are not here ({next(iter(missing))}, ...); "
            f"run the same command once with a network"
        )
    for name in list(missing):
        if _linked(address, commit, name, root / name, missing[name]):
            del missing[name]
    _check_space(address, root, missing)
    for number, (name, file) in enumerate(missing.items(), 1):
        logger.info("%s: file %d of %d, %.2f GB", name, number, len(missing), file.size / 1e9)
        _fetch(address, commit, name, root / name, file)
    return root / address.folder, commit


def _listing(address: Address, siblings: Any) -> dict[str, File]:
    """The files that a conversion may read; beside safetensors a .pt is the same weights once more."""
    inside = f"{address.folder}/" if address.folder else ""
    files = {}
    for one in siblings:
        path = PurePosixPath(one.rfilename)
        if not one.rfilename.startswith(inside) or path.suffix not in WANTED:
            continue
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in one.rfilename
            or path.parts[0].startswith(".")
        ):
            raise CheckpointError(
                f"{address}: lists {one.rfilename!r}, which is no name of a file in a folder"
            )
        files[one.rfilename] = File(int(one.size or 0), one.lfs and one.lfs.sha256, one.blob_id)
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


def _remember(address: Address, home: Path, commit: str, files: Mapping[str, File]) -> None:
    """For a run without a network: what this name meant, and what belongs to it."""
    path = _record(address, home)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"commit": commit, "files": {name: vars(file) for name, file in files.items()}}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)


def _remembered(address: Address, home: Path) -> tuple[str, dict[str, File]]:
    try:
        content = json.loads(_record(address, home).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{address}: was not downloaded, and no network may be used (--offline or HF_HUB_OFFLINE); "
            f"run the same command once with one"
        ) from error
    return content["commit"], {name: File(**file) for name, file in content["files"].items()}


def _record(address: Address, home: Path) -> Path:
    name = str(address).removeprefix(SCHEME).replace("/", "--")
    return home / f"{name}.json"


def _there(path: Path, file: File) -> bool:
    """Whole: its name is given to it when it is."""
    return path.is_file() and path.stat().st_size == file.size


def _linked(address: Address, commit: str, name: str, path: Path, file: File) -> bool:
    """Whether the hub's own cache has the file, as another program may have left it; then it is linked to."""
    cached = try_to_load_from_cache(address.repo, name, revision=commit)
    if (
        not isinstance(cached, str)
        or not _there(Path(cached), file)
        or not _intact(Path(cached), file)
    ):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(Path(cached).resolve())
    return True


def _check_space(address: Address, root: Path, missing: Mapping[str, File]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    begun = sum(path.stat().st_size for path in root.rglob("*.part"))
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


def _fetch(address: Address, commit: str, name: str, path: Path, file: File) -> None:
    """Append what is missing to NAME.part, check it, and give it its name; what a power cut left of the end may be anything."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    for _ in range(2):
        with _explained(address, name), part.open("ab") as out:
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
        if _intact(part, file):
            part.replace(path)
            return
        part.unlink()
        logger.warning("%s: is not what the hub has; it is fetched again", name)
    raise CheckpointError(
        f"{address}: {name} arrives damaged (its checksum is not the hub's); try again later"
    )


def _intact(path: Path, file: File) -> bool:
    state = (
        hashlib.sha256()
        if file.sha256
        else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    )
    with path.open("rb") as content:
        while block := content.read(_HASH_BLOCK):
            state.update(block)
    return state.hexdigest() == (file.sha256 or file.git)


@contextmanager
def _explained(address: Address, name: str = "") -> Iterator[None]:
    """One sentence for each thing that the hub can say, or the network."""
    where = f"{address}: {name}:" if name else f"{address}:"
    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"{where} is behind a licence; accept it on the model's page, and give a token by HF_TOKEN or `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{where} is no model of the hub, or a private one; check the name, or give a token by HF_TOKEN or `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{where} has no revision {address.revision!r}; name a branch, tag or commit of it"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise InputError(
            f"{where} the hub answers {status}; try again later, it goes on where it stopped"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise InputError(
                f"{where} cannot be written ({error.strerror}); make room and run the same command again, "
                f"it goes on where it stopped"
            ) from error
        raise _unreachable(where, error) from error
    except Exception as error:
        # The client's transport, which has changed its library between releases, has errors of no common base.
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise _unreachable(where, error) from error


def _unreachable(where: str, error: Exception) -> InputError:
    said = str(error).strip().splitlines()
    return InputError(
        f"{where} the hub cannot be reached ({said[0] if said else type(error).__name__}); "
        f"run the same command again, it goes on where it stopped, or with --offline if all of it is here"
    )
