"""Arrays in NumPy's files: read only if the files hold as many bytes as they announce."""

import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted.files import open_regular, shown_path

_ERRORS = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)  # fmt: skip
"""What NumPy and zipfile raise for damaged files."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file that `numpy.savez` wrote.

    Raises:
        InputError: it is not there, or no regular file.
        CheckpointError: it is damaged, compressed, or announces more than it holds.
    """
    try:
        with open(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
            return {
                member.filename.removesuffix(".npy"): _read_member(archive, member)
                for member in archive.infolist()
            }
    except InputError:
        raise
    except _ERRORS as error:
        raise _damaged(path, error) from error


def map_array(path: Path) -> np.ndarray:
    """The array of an `.npy` file, which stays on the disk.

    Raises:
        InputError: it is not there, or no regular file.
        CheckpointError: it is damaged, or announces another size than it has.
    """
    try:
        with open(open_regular(path), "rb") as file:
            _check_size(file, path.stat().st_size)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except _ERRORS as error:
        raise _damaged(path, error) from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    # Stored as it is: what a few bytes would be unpacked to has no bound.
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError("a part of it is compressed")
    with archive.open(member) as file:
        _check_size(file, member.file_size)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_size(file: Any, size: int) -> None:
    """The header announces as many bytes as there are; NumPy allocates before it reads."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if read is None:
        raise ValueError("its header is of an unknown version")
    shape, _, dtype = read(file)
    if dtype.hasobject or file.tell() + prod(shape) * dtype.itemsize != size:
        raise ValueError("it does not hold what its header announces")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{shown_path(path)}: is damaged ({str(error)[:200]}); delete its folder and do the same again"
    )
