"""Calibrating a checkpoint: float blocks are read and quantized blocks are written one by one; a killed run resumes.

DST.tmp/               the checkpoint that is being made; becomes DST when it is whole
DST.calibration/       what was sampled, and the activations between blocks; deleted at the end
DST.calibration/rounded        the transformer before it is tuned, where it is
DST.calibration/tuning.npz     the state of tuning
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from qsjax.calibration import work_folder
from qsjax.calibration.loop import block_order, calibrate_blocks
from qsjax.calibration.methods import Method
from qsjax.calibration.refiner import rounded_refiner
from qsjax.calibration.rest import copy_rest
from qsjax.calibration.source import CheckpointSource
from qsjax.calibration.trajectories import Gathered
from qsjax.calibration.tuning import tune
from qsjax.calibration.tuning_store import TuningStore
from qsjax.calibration.variables import effective_recipe
from qsjax.checkpoint import CheckpointWriter, Manifest, load_item, made_already
from qsjax.config import to_mapping
from qsjax.disk import beside, require_room, write_atomically
from qsjax.dit import load_dit
from qsjax.dit.stack import Kept
from qsjax.errors import CheckpointError, InputError
from qsjax.locks import lock
from qsjax.params import find_parameter
from qsjax.quant import Recipe
from qsjax.untrusted import check_plain, read_object
from qsjax.versions import CALIBRATION, versions


def calibrate_checkpoint(
    source: Path,
    destination: Path,
    gather: Callable[[Path], Gathered],
    recipe: Recipe,
    method: Method,
    *,
    described: Mapping[str, Any],
    seed: int = 0,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    kept: Kept = "inputs",
    room: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    verify: bool = True,
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Write a quantized checkpoint.

    The same call after an interruption goes on after the last finished block, and ends with the same bits; when all is done, it finds
    that. Another process that does the same at the same time waits for it.

    Args:
        source: a float checkpoint.
        destination: directory to appear.
        gather: makes the calibration's samples and, for a method that tunes, its trajectories; or reads what it has stored in
            this folder.
        recipe: bits and transforms.
        method: how they are found.
        described: everything that the samples depend on (captions, size, seed): part of what is resumed.
        seed: of the order of samples.
        dtype: of activations; None is bfloat16.
        mesh: of devices that tune; None is the default device.
        kept: what the backward pass of tuning finds of each block.
        room: bytes that everything on the disk takes together; it is looked whether there are so many.
        overwrite: replace a finished checkpoint, at the end.
        progress: show a bar.
        verify: compare the source's weights with their sha256 in its manifest.

    Returns:
        The new manifest, and the report of each block.

    Raises:
        InputError: the source is quantized already, or the destination cannot be written.
        CheckpointError: the source is no checkpoint, or damaged.
    """
    manifest = Manifest.read(source)
    quantized = manifest.component("dit").recipe
    if quantized is not None:
        raise InputError(
            f"{source}: is quantized already ({quantized.get('name')}); calibrate the checkpoint it was made from"
        )
    dtype = jnp.dtype(jnp.bfloat16 if dtype is None else dtype)
    stored = effective_recipe(recipe, method)
    identity = _identity(manifest, stored, method, described, seed, dtype)
    folder = beside(destination, ".calibration")
    with lock(destination, doing="calibrate", identity=identity) as waited:
        made = made_already(destination, identity, again=overwrite and not waited)
        if made is not None:
            work_folder.delete(folder, of=identity)
            return made, list((made.component("dit").calibration or {})["blocks"])
        writer = CheckpointWriter(destination, identity=identity, overwrite=overwrite)
        work_folder.make(folder, identity)
        there = work_folder.size_of(folder) + work_folder.size_of(beside(destination, ".tmp"))
        require_room(destination, room - there, "calibration ")
        origin, gathered = CheckpointSource(manifest, dtype, verify=verify), gather(folder)
        run = _Run(origin, gathered, recipe, stored, method, described, seed, folder, progress)
        for relative in manifest.files:
            writer.write_file(relative, manifest.read_file(relative))
        if method.tune_steps:
            rounded = folder / "rounded"
            if not rounded.exists():
                run.quantize(CheckpointWriter(rounded, identity=identity), ["dit"])
            whole = run.tune(writer, rounded, dtype, mesh, kept)
        else:
            whole = run.quantize(writer, list(manifest.components))
        blocks = run.reports
        work_folder.delete(folder, of=identity)
        return whole, blocks


@dataclass(frozen=True, eq=False)
class _Run:
    """The parts of `calibrate_checkpoint`, each of which goes on where it was interrupted.

    Attributes:
        origin: the float model.
        gathered: what it is calibrated with.
        recipe: bits and transforms that were asked for.
        stored: without the transforms that the method has no use for.
        method: how they are found.
        described: what the samples depend on.
        seed: of orders.
        folder: for everything that is not yet a checkpoint.
        progress: show bars.
    """

    origin: CheckpointSource
    gathered: Gathered
    recipe: Recipe
    stored: Recipe
    method: Method
    described: Mapping[str, Any]
    seed: int
    folder: Path
    progress: bool

    @property
    def reports(self) -> list[dict[str, Any]]:
        """The report of each block."""
        return [read_object(self.folder / f"{name}.json") for name in self._names]

    def quantize(self, writer: CheckpointWriter, components: list[str]) -> Manifest:
        """Write a checkpoint of these components, the DiT's layers calibrated block by block and rounded."""
        names, finished = self._names, writer.finished_items()
        left = [number for number, name in enumerate(names) if f"dit/{name}" not in finished]

        def keep(kind: str, index: int, leaves: Mapping[str, Any], report: dict[str, Any]) -> None:
            block = f"{kind}.{index}"
            _require_finite(block, report)
            write_atomically(self.folder / f"{block}.json", json.dumps(report).encode())
            named = {f"{block}.{name}": np.asarray(leaf) for name, leaf in leaves.items()}
            writer.write_item("dit", block, named)

        if left:
            calibrate_blocks(
                self.origin, self.gathered.samples, self.recipe, self.method, keep,
                seed=self.seed, folder=self.folder, finished=left[0], progress=self.progress,
            )  # fmt: skip
        manifest, refiner = self.origin.manifest, self.origin.ends.refiner
        rounded = rounded_refiner(refiner, self.gathered.samples, self.stored, self.method)
        rest = copy_rest(manifest, writer, self.stored, components, rounded)
        return self._finish(writer, {**rest, "dit": [*names, *rest["dit"]]})

    def tune(
        self,
        writer: CheckpointWriter,
        rounded: Path,
        dtype: DTypeLike,
        mesh: Mesh | None,
        kept: Kept,
    ) -> Manifest:
        """Write the whole checkpoint, its DiT that of the checkpoint `rounded`, tuned end to end."""
        trajectories = self.gathered.trajectories
        if trajectories is None:
            raise ValueError(f"method {self.method.name} tunes, and there are no trajectories")
        tuned, curve = tune(
            load_dit(rounded, dtype=jnp.dtype(dtype)), trajectories, self.method,
            seed=self.seed, kept=kept, mesh=mesh, store=TuningStore(self.folder / "tuning.npz"),
            progress=self.progress,
        )  # fmt: skip
        manifest, finished = Manifest.read(rounded), writer.finished_items()
        items = list(manifest.component("dit").items)
        for item in items:
            if f"dit/{item}" in finished:
                continue
            leaves = {leaf: np.asarray(x) for leaf, x in load_item(manifest, "dit", item).items()}
            for leaf in leaves:
                place = find_parameter(leaf, tuned)
                if place is not None:
                    name, row = place
                    leaves[leaf] = tuned[name] if row is None else tuned[name][row]
            writer.write_item("dit", item, leaves)
        source = self.origin.manifest
        others = [name for name in source.components if name != "dit"]
        rest = copy_rest(source, writer, self.stored, others, {})
        return self._finish(writer, {"dit": items, **rest}, {"loss": curve})

    @property
    def _names(self) -> list[str]:
        return [f"{kind}.{index}" for kind, index in block_order(self.origin.config)]

    def _finish(
        self,
        writer: CheckpointWriter,
        items: Mapping[str, list[str]],
        tuning: Mapping[str, Any] | None = None,
    ) -> Manifest:
        manifest = self.origin.manifest
        data = _description(
            manifest, self.stored, self.method, self.described, self.reports, tuning
        )
        data["components"] = {name: data["components"][name] for name in items}
        data["components"]["dit"]["bytes"] = sum(
            int(np.prod(spec["shape"])) * jnp.dtype(spec["dtype"]).itemsize
            for item, leaves in writer.finished_items().items()
            if item.startswith("dit/")
            for spec in leaves.values()
        )
        return writer.finish(data, items)


def _require_finite(block: str, report: Mapping[str, Any]) -> None:
    try:
        check_plain(dict(report))
    except ValueError as error:
        raise CheckpointError(
            f"{block}: calibrating it gave no usable errors ({error}); sample a video with the checkpoint to see whether its weights"
            " are sound, or take another method"
        ) from error


def _description(
    manifest: Manifest,
    recipe: Recipe,
    method: Method,
    described: Mapping[str, Any],
    reports: list[dict[str, Any]],
    tuning: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The manifest of the new checkpoint but for its items: the old one's, and how the DiT was quantized."""
    data = {key: value for key, value in manifest.data.items() if key != "format_version"}
    data["components"] = {name: dict(part) for name, part in manifest.data["components"].items()}
    dit = data["components"]["dit"]
    dit["recipe"], dit["clipped"] = to_mapping(recipe), method.clipped
    dit["calibration"] = {
        "method": to_mapping(method),
        "samples": dict(described),
        "libraries": versions(CALIBRATION),
        "blocks": reports,
        **({} if tuning is None else {"tuning": dict(tuning)}),
    }
    return data


def _identity(
    manifest: Manifest,
    recipe: Recipe,
    method: Method,
    described: Mapping[str, Any],
    seed: int,
    dtype: np.dtype,
) -> str:
    """Of everything that the new checkpoint depends on."""
    weights = {
        name: [[item, leaf, spec["sha256"]] for item, leaf, spec in manifest.leaves(name)]
        for name in manifest.components
    }
    configs = {name: dict(part.config) for name, part in manifest.components.items()}
    rest = [configs, manifest.files, manifest.generation, manifest.tiling, manifest.prompt]
    asked = [to_mapping(recipe), to_mapping(method), dict(described), seed, dtype.name]
    content = json.dumps([weights, rest, asked, versions(CALIBRATION)["qsjax"]], default=dict)
    return hashlib.sha256(content.encode()).hexdigest()
