"""Which bytes of a download are here: a file is fetched in pieces, each from its beginning on, several at a time.

`NAME.part` holds the bytes at their places, `NAME.part.pieces` how many of each piece are here, 8 bytes a piece. A byte is written before
it is counted, so that what a killed process has counted is there. Without the second file the first one is a beginning without holes.
"""

import os
import threading
from pathlib import Path

PIECE = 32 << 20
"""Bytes of a piece; a file of at most one is fetched by one connection, without a second file."""
_COUNT = 8


class Pieces:
    """The pieces of a file that is not complete; a context manager.

    Args:
        part: the file, which is made if it is not there.
        size: that it will have, in bytes.

    Attributes:
        size: see above.
        length: bytes of a piece; the last one may have fewer.
        counts: bytes of each piece that are here.

    Raises:
        OSError: the disk refuses.
    """

    def __init__(self, part: Path, size: int) -> None:
        self._part, self.size, self.length = part, size, PIECE
        self._lock = threading.Lock()
        self.counts = counted(part, size)
        self._file = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._record: int | None = None
        if not any(
            self.counts
        ):  # also what is larger than the file can be, or has a record that says nothing
            os.ftruncate(self._file, 0)
            _record_of(part).unlink(missing_ok=True)

    def span(self, number: int) -> tuple[int, int]:
        """The bytes `begin:end` of a piece that are not here."""
        begin = number * self.length
        return begin + self.counts[number], min(begin + self.length, self.size)

    def unfinished(self) -> list[int]:
        """The pieces that are not complete."""
        spans = ((number, self.span(number)) for number in range(len(self.counts)))
        return [number for number, (begin, end) in spans if begin < end]

    @property
    def done(self) -> int:
        """Bytes that are here."""
        return sum(self.counts)

    def write(self, number: int, block: bytes) -> None:
        """Put a block behind what is here of a piece.

        Raises:
            OSError: the disk refuses.
        """
        if len(self.counts) > 1:
            with self._lock:
                self._open_record()
        place, view = self.span(number)[0], memoryview(block)
        while view:
            count = os.pwrite(self._file, view, place)
            place, view = place + count, view[count:]
        with self._lock:
            self.counts[number] += len(block)
            if self._record is not None:
                count = self.counts[number].to_bytes(_COUNT, "little")
                os.pwrite(self._record, count, number * _COUNT)

    def restart(self) -> None:
        """Forget all of it.

        Raises:
            OSError: the disk refuses.
        """
        with self._lock:
            self.counts = [0] * len(self.counts)
            self._forget()
            os.ftruncate(self._file, 0)

    def finish(self) -> None:
        """Have it on the disk as a file without holes.

        Raises:
            OSError: the disk refuses.
        """
        os.fsync(self._file)
        self._forget()

    def _open_record(self) -> None:
        """Have all counts on the disk, before anything is written where a beginning does not end."""
        if self._record is None:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
            self._record = os.open(_record_of(self._part), flags, 0o644)
            content = b"".join(count.to_bytes(_COUNT, "little") for count in self.counts)
            os.pwrite(self._record, content, 0)
            os.ftruncate(self._record, len(content))

    def _forget(self) -> None:
        if self._record is not None:
            os.close(self._record)
            self._record = None
        _record_of(self._part).unlink(missing_ok=True)

    def __enter__(self) -> "Pieces":
        return self

    def __exit__(self, *_: object) -> None:
        if self._record is not None:
            os.close(self._record)
        os.close(self._file)


def counted(part: Path, size: int) -> list[int]:
    """How many bytes of each piece are here; none if what is there cannot be of a file of this size."""
    lengths = [min(PIECE, size - begin) for begin in range(0, size, PIECE)]
    here = part.stat().st_size if part.is_file() else 0
    if here > size:
        return [0] * len(lengths)
    beginning = [
        min(max(here - number * PIECE, 0), length) for number, length in enumerate(lengths)
    ]
    record = _record_of(part)
    if not here or not record.is_file():
        return beginning
    content = record.read_bytes()[: _COUNT * len(lengths) + 1]
    counts = [
        int.from_bytes(content[place : place + _COUNT], "little")
        for place in range(0, len(content), _COUNT)
    ]
    fits = len(content) == _COUNT * len(lengths) and all(
        count <= there for count, there in zip(counts, beginning, strict=True)
    )
    return counts if fits else [0] * len(lengths)


def _record_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.pieces")
