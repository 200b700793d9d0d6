"""Reading ranges of a file into fresh arrays.

Nothing is mapped: pages of a mapping count as resident memory of the process, and a conversion that maps
its source appears (and, under a memory limit, is) as large as the source.
"""

import os
from pathlib import Path

import numpy as np

from qsjax.errors import CheckpointError
from qsjax.untrusted import open_regular

_LARGEST_READ = 1 << 30  # one system call transfers less than 2 GiB on Linux and macOS


class ByteRanges:
    """A file that is opened once, so that what was checked is what is read.

    Raises:
        InputError: the file cannot be opened, or is a folder, a pipe or a device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = open_regular(path)
        self.size = os.fstat(self.descriptor).st_size
        self._open = True

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The bytes from `offset` on as a fresh array; the caller has checked that they are in the file.

        Raises:
            CheckpointError: the file became shorter, or cannot be read.
        """
        array = np.empty(shape, dtype)
        if array.nbytes == 0:
            return array
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(
                    self.descriptor, [view[done : done + _LARGEST_READ]], offset + done
                )
            except OSError as error:
                raise CheckpointError(
                    f"{self.path}: cannot be read at byte {offset + done} ({error.strerror}); check the disk and try again"
                ) from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: ends at byte {offset + done}, although it had {self.size} bytes when it was opened; it must not change during the conversion"
                )
            done += count
        return array

    def raw(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on."""
        return self.array(offset, (count,), np.dtype(np.uint8)).tobytes()

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._open:
            self._open = False
            os.close(self.descriptor)
