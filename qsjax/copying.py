"""Copies of checkpoints and of compiled programs, for machines that go: to a mounted drive, and back on the next day."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from qsjax.checkpoint import Manifest
from qsjax.disk import beside, remove, replacing, require_room, writing
from qsjax.errors import CheckpointError, InputError
from qsjax.locks import lock
from qsjax.progress import Progress
from qsjax.untrusted.files import shown_path

PathLike = str | os.PathLike[str]
_PROGRAM = re.compile(r"\w[\w.-]*-[0-9a-f]{64}-cache")
"""JAX's name of a compiled program: two of the same name are the same."""


def copy_checkpoint(source: PathLike, destination: PathLike, *, progress: bool = True) -> Path:
    """Copy a checkpoint. It has its name when it is whole; the same call goes on after an interruption, and finds its work done.

    Weights are compared with the manifest when they are loaded, from wherever they are.

    Args:
        source: the checkpoint.
        destination: the folder to be; its parent is made.
        progress: show a bar in bytes.

    Returns:
        The destination.

    Raises:
        CheckpointError: the source is no checkpoint, or has links in it.
        InputError: something else has the destination's name, or the disk does not take it.
    """
    manifest, place = Manifest.read(source), Path(destination)
    with lock(place, doing="copy", identity=manifest.digest):
        if os.path.lexists(place):
            _require_same(place, manifest)
            return place
        half = beside(place, f".{manifest.digest[:16]}.copy")
        others = re.compile(re.escape(place.name) + r"\.[0-9a-f]{16}\.copy")
        for path in place.parent.iterdir():
            if others.fullmatch(path.name) and path != half:  # of a checkpoint that is no more
                with writing(path):
                    remove(path)
        files = _files(manifest.directory)
        _copy(manifest.directory, half, files, place, progress)
        with writing(place):
            half.rename(place)
    return place


def copy_programs(source: PathLike, destination: PathLike, *, progress: bool = True) -> int:
    """Copy the programs of a compilation cache that are not there yet; returns their number.

    JAX runs what it finds in its cache: copy from places of your own only.

    Args:
        source: a folder that JAX keeps programs in (`qsjax.cache.keep_programs`); there may be none.
        destination: another one; it is made.
        progress: show a bar in bytes.

    Raises:
        InputError: the disk does not take them.
    """
    folder, place = Path(source), Path(destination)
    found = sorted(folder.glob("*-cache")) if folder.is_dir() else []
    files = {
        path.name: path.stat().st_size
        for path in found
        if _PROGRAM.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    }
    return _copy(folder, place, files, place, progress)


def _require_same(place: Path, manifest: Manifest) -> None:
    try:
        same = Manifest.read(place).digest == manifest.digest
    except CheckpointError:
        same = False
    if not same:
        raise InputError(
            f"{shown_path(place)}: is there already and not a copy of {shown_path(manifest.directory)}; move it or name another place"
        )


def _files(folder: Path) -> dict[str, int]:
    """The files below a folder by their path in it, with their sizes."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise CheckpointError(
                f"{shown_path(path)}: is a link or no file, which a checkpoint does not have; convert it again"
            )
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    return files


def _copy(source: Path, target: Path, files: Mapping[str, int], place: Path, progress: bool) -> int:
    """Copy the files that are not there; `place` is named in messages. Returns their number."""
    left = {name: size for name, size in files.items() if not _is_there(target / name, size)}
    total = sum(files.values())
    require_room(place, sum(left.values()), "the copy ")
    done = total - sum(left.values())
    with (
        Progress(total, "copy", unit="B", initial=done, enabled=progress and bool(left)) as bar,
        writing(place),
    ):
        for name, size in left.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
            bar.advance(size)
    return len(left)


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size
