"""The way back: a checkpoint as PyTorch files that diffusers loads, bit for bit what was converted; or, quantized, as docs/format.md says."""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint_source import CheckpointSource
from convert.containers import write_sharded
from convert.quantized_source import QuantizedSource
from qsjax.checkpoint import Manifest
from qsjax.config import to_mapping
from qsjax.disk import (
    beside,
    put_aside,
    remove,
    replace_folder,
    require_room,
    write_atomically,
    writing,
)
from qsjax.dit.config import DiTConfig
from qsjax.errors import CheckpointError, InputError, QsjaxError
from qsjax.locks import lock
from qsjax.progress import Progress
from qsjax.untrusted import inside, read_object
from qsjax.vae.config import VAEConfig

FOLDERS = {"dit": "transformer", "vae": "vae"}
"""Component -> folder of a diffusers pipeline. The text encoders lack the layers that are not used."""

logger = logging.getLogger("qsjax.export")

MARKER = "qsjax_export.json"
"""Marks a folder that an export may replace."""

_STEM = "diffusion_pytorch_model"
_QUANTIZED_STEM = "quantized_model"
"""Another one, so that diffusers does not take the file for weights that it knows."""
_SHARD_BYTES = 5e9


def export(
    checkpoint: Path,
    destination: Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    shard_bytes: float | int = _SHARD_BYTES,
) -> tuple[Path, ...]:
    """Write `transformer/` and `vae/` as diffusers names them: safetensors shards, index and config.json.

    A quantized transformer is written with its packed integers, scales and transforms, see docs/format.md. The same call finds its work done where it was done before; another process that does the same at the same time waits for it.

    Args:
        checkpoint: of ours.
        destination: folder to appear; it appears whole or not at all.
        overwrite: replace a folder that an earlier export wrote.
        progress: show a bar in bytes.
        shard_bytes: largest size of a shard, in bytes.

    Returns:
        The files written.

    Raises:
        CheckpointError: not a checkpoint, a damaged one, or one without DiT and VAE.
        InputError: the destination exists or cannot be written.
    """
    manifest = Manifest.read(checkpoint)
    readers = {name: _Tensors(manifest, name) for name in FOLDERS if name in manifest.components}
    if not readers:
        raise CheckpointError(
            f"{checkpoint}: has neither a transformer nor a VAE, and text encoders are not exported; name another checkpoint"
        )
    identity = _identity(readers, shard_bytes)
    with lock(destination, doing="export", identity=identity) as waited:
        if not overwrite or waited:
            made = _made_already(destination, identity)
            if made:
                return made
        return _export(checkpoint, readers, destination, identity, overwrite, shard_bytes, progress)


def _export(
    checkpoint: Path,
    readers: Mapping[str, "_Tensors"],
    destination: Path,
    identity: str,
    overwrite: bool,
    shard_bytes: float | int,
    progress: bool,
) -> tuple[Path, ...]:
    temporary = beside(destination, ".tmp")
    if destination.exists() and not (overwrite and _is_export(destination)):
        raise InputError(
            f"{destination}: exists already; pass `overwrite=True` to replace an earlier export or name another folder"
        )
    if temporary.exists() and not _is_export(temporary):
        raise InputError(
            f"{temporary}: is in the way and no export; name another folder than {destination}"
        )
    put_aside(destination, _is_export)
    try:
        with writing(destination):
            remove(temporary)
            temporary.mkdir(parents=True)
            require_room(destination, sum(reader.nbytes for reader in readers.values()))
            facts: dict[str, Any] = {"checkpoint": checkpoint.name, "identity": identity}
            # From the first moment on, so that the next export may delete what a killed one leaves.
            write_atomically(temporary / MARKER, json.dumps(facts).encode())
        written = _write(readers, temporary, float(shard_bytes), progress)
        relative = [path.relative_to(temporary) for path in written]
        with writing(destination):
            facts["files"] = [path.as_posix() for path in relative]
            write_atomically(temporary / MARKER, json.dumps(facts).encode())
            replace_folder(temporary, destination, _is_export)
    finally:
        with suppress(OSError):
            remove(temporary)
    return tuple(destination / path for path in relative)


def _identity(readers: Mapping[str, "_Tensors"], shard_bytes: float | int) -> str:
    """Of what is written: digests of all leaves, and the size of files."""
    content = [[name, reader.digests] for name, reader in readers.items()]
    return hashlib.sha256(json.dumps([content, float(shard_bytes)]).encode()).hexdigest()


def _made_already(destination: Path, identity: str) -> tuple[Path, ...]:
    """The files of a finished export of this identity; none where there is none."""
    if not _is_export(destination):
        return ()
    try:
        facts = read_object(destination / MARKER)
        names = facts.get("files")
        if facts.get("identity") != identity or not isinstance(names, list):
            return ()
        files = tuple(inside(destination, name, "a file") for name in names)
    except QsjaxError:  # of another version, or damaged: it is made again, or refused
        return ()
    if not all(path.is_file() for path in files):
        return ()
    logger.info("%s: is there already, made by the same command", destination)
    return files


def _write(
    readers: Mapping[str, "_Tensors"], folder: Path, shard_bytes: float, progress: bool
) -> list[Path]:
    written: list[Path] = []
    total = sum(reader.nbytes for reader in readers.values())
    with Progress(total, "export", unit="B", enabled=progress) as bar:
        for name, reader in readers.items():
            part = folder / FOLDERS[name]
            with writing(part):
                part.mkdir()
            reader.bar = bar
            written += write_sharded(
                part,
                reader.stem,
                reader.infos,
                reader.read,
                shard_bytes=shard_bytes,
                metadata=reader.metadata,
            )
            written.append(part / "config.json")
            assert isinstance(reader.config, DiTConfig | VAEConfig)
            content = json.dumps(reader.config.to_diffusers(), indent=2) + "\n"
            write_atomically(written[-1], content.encode())
    return written


class _Tensors:
    """The tensors of a component, with a bar."""

    def __init__(self, manifest: Manifest, component: str) -> None:
        quantized = component == "dit" and manifest.component(component).recipe is not None
        self._source = (
            QuantizedSource(manifest) if quantized else CheckpointSource(manifest, component)
        )
        self.stem = _QUANTIZED_STEM if quantized else _STEM
        self.metadata = self._source.metadata or None
        self.config = self._source.component_config
        self.infos = self._source.tensors
        self.nbytes = sum(info.nbytes for info in self.infos.values())
        self.digests = [
            [item, leaf, spec["sha256"]] for item, leaf, spec in manifest.leaves(component)
        ] + [to_mapping(self.config), *([dict(self.metadata)] if self.metadata else [])]
        self.bar: Progress | None = None

    def read(self, name: str) -> np.ndarray:
        """One tensor; cheap if its neighbours were read before."""
        if self.bar is not None:
            self.bar.advance(self.infos[name].nbytes)
        return self._source.read(name)


def _is_export(folder: Path) -> bool:
    return (folder / MARKER).is_file()
