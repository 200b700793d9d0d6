"""A safetensors file of which only the head is here; the rest comes when the first tensor is read.

The head is the header, and of a file that was here before also its smallest tensors, packed together: scales, which readers
of other formats look at when they open a file.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from convert.containers.safetensors_file import SafetensorsFile, header_end, parse_header
from convert.containers.source import Source
from qsjax.errors import CheckpointError

_SMALL = 256
"""Bytes of the largest tensor that a head holds."""


class PromisedSafetensors(Source):
    """A safetensors file that may not be here yet.

    Args:
        path: where it is or will be.
        head: its first bytes, all of the header; or what `head` gave before.
        size: of the file, in bytes.
        fetch: has the file at its place.

    Raises:
        CheckpointError: the head contradicts itself or the size.
    """

    container = SafetensorsFile.container

    def __init__(self, path: Path, head: bytes, size: int, fetch: Callable[[Path], None]) -> None:
        self.files = (path,)
        self._path, self._fetch = path, fetch
        self._file: SafetensorsFile | None = None
        self.tensors, offsets, self.metadata = parse_header(
            path, size, lambda offset, count: head[offset : offset + count]
        )
        end = header_end(path, size, head)
        small = [name for name, info in self.tensors.items() if 0 < info.nbytes <= _SMALL]
        self._small = sorted(small, key=offsets.__getitem__)
        self._header, self._values = head[:end], self._split(head[end:])

    def _split(self, values: bytes) -> dict[str, np.ndarray]:
        infos = {name: self.tensors[name] for name in self._small if values}
        if len(values) != sum(info.nbytes for info in infos.values()):
            raise CheckpointError(
                f"{self._path}: its head is damaged; delete it and do the same again"
            )
        arrays, begin = {}, 0
        for name, info in infos.items():
            part = np.frombuffer(values[begin : begin + info.nbytes], info.dtype)
            arrays[name] = part.reshape(info.shape)
            begin += info.nbytes
        return arrays

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        if name in self._values:
            value = self._values[name]
            return (value if rows is None else value[rows[0] : rows[1]]).copy()
        if self._file is None:
            self._fetch(self._path)
            self._file = SafetensorsFile(self._path)
            if self._file.tensors != self.tensors:
                raise CheckpointError(
                    f"{self._path}: holds other tensors than its header said before; do the same once more"
                )
        return self._file.read(name, rows)

    def is_here(self, name: str) -> bool:
        """See `Source.is_here`."""
        return name in self._values or self._path.is_file()

    def head(self) -> bytes:
        """What another one can be made of when the file is not here; it is here now."""
        return self._header + b"".join(self.read(name).tobytes() for name in self._small)

    def close(self) -> None:
        """Close the file; another read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None
