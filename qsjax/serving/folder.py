"""The folder of all videos: their files are the only record of them, so that what is finished survives the process."""

import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qsjax.disk import writing
from qsjax.errors import CheckpointError, InputError
from qsjax.locks import lock
from qsjax.provenance import Provenance, read_provenance
from qsjax.untrusted import inside

SUFFIX, REFERENCE = ".mp4", ".full-precision.mp4"
"""Of a video, and of the same in full precision, which lies beside it."""
_ID = r"video-\d{8}-\d{6}-[0-9a-f]{16}"
_NAME = re.compile(_ID)
_LEFT = re.compile(rf"{_ID}(\.full-precision)?\.mp4\.(tmp|probe)")
"""What a killed process leaves of a file that it was writing."""
_MOST = 10_000
"""Files of the folder that are looked at."""


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """A video on the disk.

    Attributes:
        id: its name.
        path: its file.
        reference: the file of the same in full precision; None if there is none.
        made: how it was made.
        created: Unix time of its file, seconds.
    """

    id: str
    path: Path
    reference: Path | None
    made: Provenance
    created: float


def new_id() -> str:
    """A name that no other video has; later ones are greater, by the second."""
    return f"video-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(8)}"


class VideoFolder:
    """Videos by id; only names of our own are read, written or deleted.

    Args:
        place: of the folder; it is made.

    Raises:
        InputError: it cannot be made, or is no folder.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._known: dict[str, tuple[tuple[int, int], Provenance | None]] = {}
        with writing(place, "name a writable folder"):
            if place.exists() and not place.is_dir():
                raise InputError(f"{place}: is no folder; name one for all videos")
            place.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def held(self, doing: str) -> Generator[None, None, None]:
        """Hold the folder for this process, and remove what a killed one left of unfinished files.

        Args:
            doing: one word, for other processes' messages.

        Raises:
            InputError: another process is at work there.
        """
        with lock(self.place / ".qsjax", doing=doing, identity=secrets.token_hex(16)):
            with writing(self.place):
                for path in list(self.place.iterdir()):
                    name = path.name
                    alone = name.endswith(REFERENCE) and _NAME.fullmatch(name.removesuffix(REFERENCE)) and not self.file(name.removesuffix(REFERENCE)).exists()  # fmt: skip
                    if _LEFT.fullmatch(name) or alone:
                        path.unlink()
            yield

    def file(self, name: str) -> Path:
        """Where the video of an id is, or will be.

        Raises:
            InputError: it is no id.
        """
        if not _NAME.fullmatch(name):
            raise InputError("no such video; list those that there are")
        return self.place / f"{name}{SUFFIX}"

    def reference_file(self, name: str) -> Path:
        """Where the same in full precision is, or will be."""
        return self.file(name).with_name(f"{name}{REFERENCE}")

    def find(self, name: str) -> VideoRecord | None:
        """The video of an id; None if there is none that says how it was made.

        Raises:
            InputError: it is no id.
        """
        path = self.file(name)
        try:
            inside(self.place, path.name, "it")  # no link
            found = path.stat()
        except (CheckpointError, OSError):
            return None
        seen = (found.st_mtime_ns, found.st_size)
        if self._known.get(name, (None,))[0] != seen:
            try:
                self._known[name] = (seen, read_provenance(path))
            except InputError:
                self._known[name] = (seen, None)
        made = self._known[name][1]
        if made is None:
            return None
        reference = self.reference_file(name)
        return VideoRecord(
            id=name,
            path=path,
            reference=reference if reference.is_file() and not reference.is_symlink() else None,
            made=made,
            created=found.st_mtime,
        )

    def newest(self, most: int) -> list[VideoRecord]:
        """The newest videos, the last one first.

        Args:
            most: of them.
        """
        names = [path.name.removesuffix(SUFFIX) for path in self.place.glob(f"video-*{SUFFIX}")]
        names = sorted((name for name in names if _NAME.fullmatch(name)), reverse=True)
        records = (self.find(name) for name in names[:_MOST])
        found = [record for record, _ in zip(filter(None, records), range(most), strict=False)]
        return sorted(found, key=lambda record: record.created, reverse=True)

    def delete(self, name: str) -> bool:
        """Delete a video, and the same in full precision; returns whether it was there.

        Raises:
            InputError: it is no id, or the disk refuses.
        """
        path = self.file(name)
        with writing(path):
            there = path.exists()
            for one in (path, self.reference_file(name)):
                one.unlink(missing_ok=True)
        self._known.pop(name, None)
        return there
