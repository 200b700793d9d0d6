"""Writing safetensors tensor by tensor: one file, or the hub's numbered shards with an index."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from convert.containers.safetensors_file import DTYPES, METADATA
from convert.containers.source import TensorInfo
from qsjax.errors import CheckpointError, InputError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FORMAT = {"format": "pt"}  # transformers refuses files without it


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file; it appears whole or not at all, and replaces what was there.

    Args:
        path: the file to appear.
        tensors: what will be written, in this order (wider dtypes first, which keeps all of them aligned).
        read: gives a tensor when its turn has come; only one is held at a time.
        metadata: strings for the header; None writes {"format": "pt"}.

    Raises:
        InputError: the file cannot be written, or a dtype does not exist in safetensors.
        CheckpointError: `read` gives another shape or dtype than announced.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, object] = {METADATA: dict(_FORMAT if metadata is None else metadata)}
    edge = 0
    for name in order:
        info = tensors[name]
        if info.dtype not in _NAMES or name == METADATA:
            raise InputError(
                f"{path}: tensor {name!r} of dtype {info.dtype} cannot be stored in safetensors; use one of {', '.join(str(d) for d in _NAMES)}"
            )
        header[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [edge, edge + info.nbytes],
        }
        edge += info.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with _whole_or_none(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array, info = read(name), tensors[name]
            if array.shape != info.shape or array.dtype != info.dtype:
                raise CheckpointError(
                    f"{path}: tensor {name!r} was announced as {info.dtype} {info.shape} and came as {array.dtype} {array.shape}; nothing was written"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array  # before the next one is made


def write_sharded(
    directory: Path,
    stem: str,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    *,
    shard_bytes: int | float = 5e9,
    metadata: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Write a folder of weights as the hub names them.

    One shard becomes `STEM.safetensors`; several become `STEM-00001-of-0000n.safetensors` with
    `STEM.safetensors.index.json`, which is written last.

    Args:
        directory: exists already.
        stem: "diffusion_pytorch_model" for diffusers, "model" for transformers.
        tensors: see `write_safetensors`.
        read: see `write_safetensors`.
        shard_bytes: size of the data of a shard; only a single larger tensor exceeds it.
        metadata: see `write_safetensors`.

    Returns:
        The files written.
    """
    shards: list[dict[str, TensorInfo]] = [{}]
    room = shard_bytes
    for name, info in tensors.items():
        if info.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = info
        room -= info.nbytes
    if len(shards) == 1:
        path = directory / f"{stem}.safetensors"
        write_safetensors(path, tensors, read, metadata)
        return (path,)
    paths: list[Path] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        paths.append(directory / f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors")
        write_safetensors(paths[-1], shard, read, metadata)
        weight_map.update(dict.fromkeys(shard, paths[-1].name))
    total = sum(info.nbytes for info in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    paths.append(directory / f"{stem}.safetensors.index.json")
    with _whole_or_none(paths[-1]) as file:
        file.write(json.dumps(index, indent=2).encode() + b"\n")
    return tuple(paths)


@contextlib.contextmanager
def _whole_or_none(path: Path) -> Iterator[BinaryIO]:
    """A file for writing that takes the name `path` only when the block ends well."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:  # the rename itself survives a power cut only when the folder is on the disk too
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); name a writable folder with enough space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
