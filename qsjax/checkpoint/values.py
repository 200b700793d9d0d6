"""Where the values of a stored item lie in its files, found without expanding more than there can be.

Orbax keeps an item as keys and values: a file each, or a B+tree in a few files (OCDBT). TensorStore reads the tree. Its nodes
are compressed, and a stranger's node of a few kilobytes could become gigabytes: what a node expands to is known from the
heads of its blocks, which are looked at first.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore as ts

from qsjax.errors import CheckpointError
from qsjax.untrusted import open_regular, read_bytes, shown

_TREE = "manifest.ocdbt"
_MOST_FILES = 1 << 16
_MOST_BYTES = 32 << 20
"""Of all nodes of an item's tree, expanded; the largest item has some kilobytes."""
_MOST_NODES = 1 << 12
_PLACE = re.compile(
    r"(?:value|btreenode):((?:ocdbt\.process_\d+/)?):(d/[0-9a-f]{1,64}):(\d+):(\d+)"
)
_HEAD, _CHECKSUM = 14, 4
"""Bytes before and after the content of a node: magic, length, version and compression; a CRC-32C."""
_FRAME, _BLOCK = b"\x28\xb5\x2f\xfd", 1 << 17
"""The first bytes of a Zstandard frame, and the most that one of its blocks expands to (RFC 8878)."""


class Value(NamedTuple):
    """Where a value is: `length` bytes of a file, or its bytes."""

    length: int
    file: Path | None = None
    offset: int = 0
    inline: bytes = b""

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset` on.

        Raises:
            ValueError: there are not as many.
            OSError: the file cannot be read.
        """
        if offset < 0 or offset + len(target) > self.length:
            raise ValueError("a value is shorter than it should be")
        if self.file is None:
            target[:] = self.inline[offset : offset + len(target)]
            return
        with os.fdopen(open_regular(self.file), "rb", buffering=0) as file:
            file.seek(self.offset + offset)
            done = 0
            while done < len(target):
                count = file.readinto(target[done:])
                if not count:
                    raise ValueError(f"{self.file.name} is shorter than it should be")
                done += count

    def read(self, largest: int) -> bytes:
        """All of it.

        Raises:
            ValueError: it is larger than `largest` bytes, or cut off.
            OSError: the file cannot be read.
        """
        if self.length > largest:
            raise ValueError(f"a value has {self.length} bytes, where {largest} are enough")
        content = bytearray(self.length)
        self.read_into(memoryview(content), 0)
        return bytes(content)


def find_files(folder: Path) -> dict[str, int]:
    """The files in a folder: path in it -> bytes.

    Raises:
        CheckpointError: there is a link, a pipe or a device in it, or far too many files.
        OSError: it cannot be listed.
    """
    found: dict[str, int] = {}
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    name = os.path.relpath(entry.path, folder).replace(os.sep, "/")
                    found[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise CheckpointError(
                        f"{folder}: {shown(entry.name)} is a link, a pipe or a device; put the file itself there"
                    )
                if len(found) + len(folders) > _MOST_FILES:
                    raise CheckpointError(
                        f"{folder}: holds more than {_MOST_FILES} files; get the checkpoint again, or convert it again"
                    )
    return found


def find_values(state: Path) -> tuple[bool, dict[str, Value]]:
    """The values of an item.

    Args:
        state: its folder of data.

    Returns:
        Whether they are in a tree (OCDBT), and key -> value.

    Raises:
        CheckpointError: a file is a link or no regular file.
        ValueError: the tree is damaged, expands to too much, or leads out of the folder.
        OSError: a file cannot be read.
    """
    files = find_files(state)
    if _TREE not in files:
        return False, {name: Value(size, state / name) for name, size in files.items()}
    return True, _Tree(state, files).values()


class _Tree:
    """The B+tree of an item."""

    def __init__(self, state: Path, files: dict[str, int]) -> None:
        self._state, self._files = state, files
        # TensorStore takes absolute paths only.
        path = f"{state.absolute()}/"
        self._store = ts.KvStore.open({"driver": "file", "path": path}).result()
        self._left = _MOST_BYTES

    def values(self) -> dict[str, Value]:
        self._spend(read_bytes(self._state / _TREE, _MOST_BYTES))
        manifest: Any = ts.ocdbt.dump(self._store).result()
        if manifest["version_tree_nodes"] or not manifest["versions"]:
            raise ValueError("its tree has many versions")
        found: dict[str, Value] = {}
        root = manifest["versions"][-1]["root"].get("location")
        nodes = [] if root is None else [("", root)]
        seen = 0
        while nodes:
            prefix, location = nodes.pop()
            seen += 1
            if seen > _MOST_NODES:
                raise ValueError(f"its tree has more than {_MOST_NODES} nodes")
            self._spend(self._place(location).read(_MOST_BYTES))
            node: Any = ts.ocdbt.dump(self._store, location).result()
            for entry in node["entries"]:
                if "location" in entry:
                    below = prefix + entry["subtree_common_prefix"].decode()
                    nodes.append((below, entry["location"]))
                    continue
                key = prefix + entry["key"].decode()
                if key in found:
                    raise ValueError("its tree has a key twice")
                if "inline_value" in entry:
                    found[key] = Value(len(entry["inline_value"]), inline=entry["inline_value"])
                else:
                    found[key] = self._place(entry["indirect_value"])
        return found

    def _place(self, location: str) -> Value:
        match = _PLACE.fullmatch(location)
        name = match[1] + match[2] if match else ""
        if match is None or name not in self._files:
            raise ValueError(f"its tree names {shown(location)}, where no file is")
        offset, length = int(match[3]), int(match[4])
        if offset + length > self._files[name]:
            raise ValueError(f"{name} is shorter than it should be")
        return Value(length, self._state / name, offset)

    def _spend(self, node: bytes) -> None:
        self._left -= _expanded(node, self._left)
        if self._left < 0:
            raise ValueError(f"its tree expands to more than {_MOST_BYTES} bytes")


def _expanded(node: bytes, most: int) -> int:
    """The most bytes that a node of the tree can expand to; counting ends above `most`.

    Raises:
        ValueError: it is no node.
    """
    if len(node) < _HEAD + _CHECKSUM or node[12] != 0 or node[13] > 1:
        raise ValueError("a node of its tree is damaged")
    if node[13] == 0:
        return len(node)
    position, end, total = _HEAD, len(node) - _CHECKSUM, 0
    while position < end and total <= most:
        if node[position : position + 4] != _FRAME or position + 5 > end:
            raise ValueError("a node of its tree is damaged")
        descriptor = node[position + 4]
        single, dictionary = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
        content = (single, 2, 4, 8)[descriptor >> 6]
        position += 5 + (1 - single) + dictionary + content
        last = False
        while not last and total <= most:
            if position + 3 > end:
                raise ValueError("a node of its tree is damaged")
            head = int.from_bytes(node[position : position + 3], "little")
            last, kind, size = bool(head & 1), head >> 1 & 3, head >> 3
            total += size if kind < 2 else _BLOCK
            position += 3 + (1 if kind == 1 else size)
        position += 4 if descriptor & 4 else 0
    return total


def count_chunks(shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
    """Chunks that cover an array."""
    return math.prod(-(-length // size) for length, size in zip(shape, chunk, strict=True))
