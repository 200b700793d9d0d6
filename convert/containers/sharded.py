"""Sharded safetensors: an index file that says in which shard each tensor lies."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from convert.containers.files import ON_DISK, Files
from convert.containers.listing import first_few
from convert.containers.source import Source
from qsjax.errors import CheckpointError
from qsjax.untrusted import read_object, shown

_MOST_SHARDS = 500
"""Files that are open at once; HunyuanVideo has 6."""


class ShardedSafetensors(Source):
    """The shards of an index (`*.safetensors.index.json`), seen as one container.

    Args:
        index: the file.
        files: where the shards are.

    Raises:
        InputError: a file cannot be opened.
        CheckpointError: the index does not describe the shards beside it exactly, or a shard is damaged.
    """

    container = "sharded safetensors"

    def __init__(self, index: Path, files: Files = ON_DISK) -> None:
        content = read_object(index)
        weight_map = _weight_map(index, content)
        names = _shards(index, weight_map)
        missing = [name for name in names if not files.is_there(index.parent / name)]
        if missing:
            raise CheckpointError(
                f"{index}: names {len(names)} shards, absent are {first_few(missing)}; download them into {index.parent}"
            )
        with contextlib.ExitStack() as stack:
            shards: dict[str, Source] = {}
            for name in names:
                shards[name] = files.open_safetensors(index.parent / name)
                stack.callback(shards[name].close)
                if sum(len(shard.tensors) for shard in shards.values()) > len(weight_map):
                    break  # what the index does not name is not read on; the comparison says what it is
            _compare(index, weight_map, shards)
            self.tensors = {name: shards[shard].tensors[name] for name, shard in weight_map.items()}
            _check_total(index, content, sum(info.nbytes for info in self.tensors.values()))
            self._stack = stack.pop_all()
        self._shards, self._weight_map = shards, weight_map
        self.files = (index, *(index.parent / name for name in names))

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        return self._shards[self._weight_map[name]].read(name, rows)

    def is_here(self, name: str) -> bool:
        """See `Source.is_here`."""
        return self._shards[self._weight_map[name]].is_here(name)

    def files_of(self, name: str) -> tuple[Path, ...]:
        """The shard of a tensor."""
        return self._shards[self._weight_map[name]].files

    def close(self) -> None:
        """Close all shards."""
        self._stack.close()


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index announces, which lie beside it.

    Raises:
        InputError: it cannot be read.
        CheckpointError: it is damaged, or names something else than files beside it.
    """
    return _shards(index, _weight_map(index, read_object(index)))


def _shards(index: Path, weight_map: dict[str, str]) -> list[str]:
    names = sorted(set(weight_map.values()))
    if len(names) > _MOST_SHARDS:
        raise CheckpointError(
            f"{index}: names {len(names)} shards, more than {_MOST_SHARDS}; save the weights in fewer"
        )
    return names


def _weight_map(index: Path, content: dict[str, Any]) -> dict[str, str]:
    weight_map = content.get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise CheckpointError(
            f"{index}: has no weight_map of tensor names to shard files; download it again"
        )
    for shard in weight_map.values():
        # Both separators and drive letters, so that no system takes it for a path to elsewhere.
        if not shard.endswith(".safetensors") or any(c in shard for c in "/\\:\0"):
            raise CheckpointError(
                f"{index}: names the shard {shown(shard)}, which is not a plain .safetensors file name beside the index; download it again"
            )
    return weight_map


def _compare(index: Path, weight_map: dict[str, str], shards: dict[str, Source]) -> None:
    """Every tensor is in the shard that the index names, in no other, and nothing else is there."""
    problems = [
        f"{shown(name)} is not in {shard}"
        for name, shard in weight_map.items()
        if shard in shards and name not in shards[shard].tensors
    ]
    for shard, file in shards.items():
        for name in file.tensors:
            if name not in weight_map:
                problems.append(f"{shown(name)} in {shard} is not in the index")
            elif weight_map[name] != shard:
                problems.append(f"{shown(name)} lies in {shard}")
    if problems:
        raise CheckpointError(
            f"{index}: does not fit its shards: {first_few(problems)}; download index and shards again from one source"
        )


def _check_total(index: Path, content: dict[str, Any], total: int) -> None:
    metadata = content.get("metadata")
    announced = metadata.get("total_size", total) if isinstance(metadata, dict) else total
    if announced != total:
        raise CheckpointError(
            f"{index}: total_size is {shown(announced, 40)}, the tensors have {total} bytes; download the shards again, or remove total_size if the index is known to be careless"
        )
