"""Conversion: tensor by tensor, in bounded memory, resumable at every item."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.component import Component, open_components
from convert.containers.files import Files
from convert.description import describe
from convert.early import check_before_opening, require_room_for
from convert.finite import WrongWeights
from convert.items import ITEM_BYTES, Item, plan_items
from convert.memory import peak_memory
from convert.quantized import Quantization, with_quantization
from convert.schedule import needed_files, room, schedule, without_absent
from convert.sources import Sources
from convert.text_storage import with_text_storage
from qsjax.checkpoint import CheckpointWriter, Manifest, made_already
from qsjax.config import nearest
from qsjax.errors import InputError
from qsjax.locks import lock
from qsjax.progress import Progress

DTYPES = ("bfloat16", "float32")
_HASH_BLOCK = 8 << 20


def convert(
    sources: Sources,
    destination: Path,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    text_storage: str | None = None,
    preset: str | None = None,
    origin: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    item_bytes: int = ITEM_BYTES,
) -> Manifest:
    """Write a checkpoint from PyTorch weights.

    Work happens under `destination` + ".tmp"; the same call after an interruption goes on where it stopped, and finds its work done
    where it was done before. Another process that does the same at the same time waits for it.
    The manifest gets the checksum of every leaf and the sha256 of every source file, so sources are read twice.

    Args:
        sources: the PyTorch files.
        destination: checkpoint directory to appear.
        dtype: "bfloat16" or "float32" for all weights; None keeps each component's own.
        quantize: "rtn-RECIPE" or "quarot-RECIPE" stores the transformer quantized, RECIPE a preset or a TOML file (see
            `convert.quantized`); the other components stay as they are.
        text_storage: "int8" stores the linear layers of the text encoders in 8 bits (`convert.text_storage`); None as the source's.
        preset: sampling settings of `configs/generation` for the manifest, in place of the sources' own; None takes those.
        origin: where the files were published, for the manifest.
        overwrite: replace an existing checkpoint, once the new one is whole.
        progress: show one bar over everything, in bytes.
        item_bytes: size of the pieces in which the checkpoint is stored, about a third of the peak memory.

    Returns:
        The manifest of the finished checkpoint.

    Raises:
        InputError: a source or configuration is absent or unsuitable, or the destination cannot be written.
        CheckpointError: a source is damaged, or its tensors do not fit its configuration.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"no dtype {dtype!r}; {nearest(dtype, DTYPES)}")
    stored = None if dtype is None else np.dtype(dtype)
    quantization = None if quantize is None else Quantization.named(quantize)
    check_before_opening(sources, destination, preset, quantized=quantization is not None)
    with open_components(sources, stored) as opened:
        components = with_text_storage(with_quantization(opened, quantization), text_storage)
        data, files = describe(sources, components, preset)
        plans = {name: plan_items(part, item_bytes) for name, part in components.items()}
        identity = _identity(components, data, item_bytes, sources.files)
        _enter_origins(components, data, sources)
        if origin is not None:
            data["origin"] = origin
        with lock(destination, doing="convert", identity=identity) as waited:
            made = made_already(destination, identity, again=overwrite and not waited)
            if made is not None:
                _release(made, components, sources.files)
                return made
            writer = CheckpointWriter(destination, identity=identity, overwrite=overwrite)
            try:
                return _write_all(
                    writer, destination, components, plans, data, files, sources.files, progress
                )
            except WrongWeights:
                writer.discard()  # with other weights it is another conversion
                raise


def _write_all(
    writer: CheckpointWriter,
    destination: Path,
    components: Mapping[str, Component],
    plans: Mapping[str, tuple[Item, ...]],
    data: dict[str, Any],
    files: Mapping[str, bytes],
    hub: Files,
    progress: bool,
) -> Manifest:
    """Write what is not there yet."""
    hashed = writer.hashed_sources()
    steps = schedule(components, plans, writer.finished_items())
    needed = needed_files(steps, hashed)
    try:
        hub.require_here(needed)
        require_room_for(
            destination, room(steps, needed, hub, beside=sum(map(len, files.values())))
        )
    except InputError:
        writer.abandon()
        raise
    if not hub.deletes:
        for path in needed:
            hub.fetch(path)
    steps = without_absent(steps, hub)
    total = sum(step.nbytes + sum(map(hub.size, step.complete)) for step in steps)
    digests: dict[str, dict[str, str]] = {name: {} for name in components}
    seconds = dict.fromkeys(components, 0.0)
    with Progress(total, "convert", unit="B", enabled=progress) as bar:
        for step in steps:
            start, name = time.perf_counter(), step.component
            if step.left and step.item is not None:
                _write(writer, components[name], step.item)
            bar.advance(step.nbytes, part=name)
            for path in step.complete:
                entry = f"{name}/{path.name}"
                if entry in hashed:
                    bar.advance(hub.size(path))
                else:
                    hub.fetch(path)
                    digest = _sha256(path, bar)
                    hub.require_listed(path, digest)
                    writer.enter_source(entry, digest)
                    hashed[entry] = digest
                digests[name][path.name] = hashed[entry]
            for path in step.free:
                hub.release(path)
            seconds[name] += time.perf_counter() - start
        for name, listed in digests.items():
            data["components"][name]["source"]["sha256"] = listed
            data["components"][name]["seconds"] = round(seconds[name], 2)
        for relative, content in files.items():
            writer.write_file(relative, content)
        data["peak_memory_bytes"] = peak_memory()
        order = {name: [item.name for item in plan] for name, plan in plans.items()}
        return writer.finish(data, order)


def _release(made: Manifest, components: Mapping[str, Component], hub: Files) -> None:
    """The files that a finished checkpoint was made of are needed no more."""
    for name, part in components.items():
        listed = made.component(name).source.get("sha256", {})
        for path in part.source.files:
            if path.name in listed:
                hub.release(path)


def _write(writer: CheckpointWriter, part: Component, item: Item) -> None:
    """Read, rearrange and store one item; its arrays are gone when this returns."""
    leaves: dict[str, np.ndarray] = {}
    for piece in item.pieces:
        leaves |= part.made(piece.row, piece.rows)
    rows = {piece.row.leaf: piece.rows for piece in item.pieces if piece.rows is not None}
    writer.write_item(part.name, item.name, leaves, rows=rows)


def _enter_origins(
    components: Mapping[str, Component], data: dict[str, Any], sources: Sources
) -> None:
    """Say in the manifest where weights and LoRAs were published, by commit; the same bytes from elsewhere are the same work."""
    hub, loras = sources.files, sources.lora or ()
    for name, part in components.items():
        source = data["components"][name]["source"]
        if (origin := hub.origin(part.path)) is not None:
            source["origin"] = origin
        if name == "dit" and loras:
            before, added = source["lora"][: -len(loras)], source["lora"][-len(loras) :]
            for record, lora in zip(added, loras, strict=True):
                origin = hub.origin(lora.path)
                before.append(record if origin is None else {**record, "origin": origin})
            source["lora"] = before


def _identity(
    components: Mapping[str, Component],
    data: Mapping[str, Any],
    item_bytes: int,
    hub: Files,
) -> str:
    """What is being written: an interrupted conversion is resumed, and a finished one recognised, only if all of this is unchanged."""
    content = [
        [part.digest() for part in components.values()],
        [[hub.stamp(path) for path in part.source.files] for part in components.values()],
        {name: value for name, value in data.items() if name != "libraries"},
        item_bytes,
        data["libraries"]["qsjax"],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sha256(path: Path, bar: Progress) -> str:
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK):
                state.update(block)
                bar.advance(len(block))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check the disk and do the same again"
        ) from error
    return state.hexdigest()
