"""The way back: a checkpoint as PyTorch files that diffusers loads, bit for bit what was converted."""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from convert.containers import TensorInfo, write_sharded
from convert.keymaps import Row, expand
from qsjax.checkpoint import Manifest, load_item
from qsjax.config import from_mapping, to_mapping
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

FOLDERS = {"dit": ("transformer", "diffusers"), "vae": ("vae", "hunyuan")}
"""Component -> (folder of a diffusers pipeline, layout). The text encoders lack the layers that are not used."""

_CONFIGS: Mapping[str, type[DiTConfig] | type[VAEConfig]] = {"dit": DiTConfig, "vae": VAEConfig}

logger = logging.getLogger("qsjax.export")

MARKER = "qsjax_export.json"
"""Marks a folder that an export may replace."""

_STEM = "diffusion_pytorch_model"
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

    The same call finds its work done where it was done before; another process that does the same at the same time waits for it.

    Args:
        checkpoint: an unquantized checkpoint.
        destination: folder to appear; it appears whole or not at all.
        overwrite: replace a folder that an earlier export wrote.
        progress: show a bar in bytes.
        shard_bytes: largest size of a shard, in bytes.

    Returns:
        The files written.

    Raises:
        CheckpointError: not a checkpoint, a quantized one, or one without DiT and VAE.
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
            part = folder / FOLDERS[name][0]
            with writing(part):
                part.mkdir()
            reader.bar = bar
            written += write_sharded(
                part, _STEM, reader.infos, reader.read, shard_bytes=shard_bytes
            )
            written.append(part / "config.json")
            content = json.dumps(reader.config.to_diffusers(), indent=2) + "\n"
            write_atomically(written[-1], content.encode())
    return written


class _Tensors:
    """The PyTorch tensors of a component, made from its leaves; one item and one leaf are held at a time."""

    def __init__(self, manifest: Manifest, component: str) -> None:
        self.config = from_mapping(
            _CONFIGS[component],
            manifest.config(component),
            source=f"{manifest.directory}: {component} config",
        )
        self.bar: Progress | None = None
        self._manifest, self._component = manifest, component
        rows = {row.leaf: row for row in expand(component, self.config, FOLDERS[component][1])}
        self._items: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        for item, leaf, spec in manifest.leaves(component):
            self._items.setdefault(leaf, []).append((item, spec))
        if set(self._items) != set(rows):
            raise CheckpointError(
                f"{manifest.directory}: {component} holds other leaves than its PyTorch original (it is quantized); "
                f"export the checkpoint it was made from"
            )
        self._row_of: dict[str, Row] = {}
        self.infos: dict[str, TensorInfo] = {}
        for leaf, places in self._items.items():  # as stored, so that each item is loaded once
            for name, shape in rows[leaf].sources.items():
                self._row_of[name] = rows[leaf]
                self.infos[name] = TensorInfo(shape, np.dtype(places[0][1]["dtype"]))
        self.nbytes = sum(info.nbytes for info in self.infos.values())
        self.digests = [
            [item, leaf, spec["sha256"]] for item, leaf, spec in manifest.leaves(component)
        ] + [to_mapping(self.config)]
        self._item: tuple[str, dict[str, Any]] = ("", {})
        self._tensors: tuple[str, dict[str, np.ndarray]] = ("", {})

    def read(self, name: str) -> np.ndarray:
        """One tensor; cheap if its neighbours were read before."""
        row = self._row_of[name]
        if self._tensors[0] != row.leaf:
            self._tensors = ("", {})
            parts = [self._load(item)[row.leaf] for item, _ in self._items[row.leaf]]
            whole = np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)
            self._tensors = (row.leaf, row.to_torch(whole))
        if self.bar is not None:
            self.bar.advance(self.infos[name].nbytes)
        return self._tensors[1][name]

    def _load(self, item: str) -> dict[str, Any]:
        if self._item[0] != item:
            self._item = ("", {})
            self._item = (item, load_item(self._manifest, self._component, item))
        return self._item[1]


def _is_export(folder: Path) -> bool:
    return (folder / MARKER).is_file()
