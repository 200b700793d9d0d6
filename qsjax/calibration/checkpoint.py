"""Calibrating a checkpoint: float blocks are read and quantized blocks are written one by one; a killed run resumes.

DST.tmp/               the checkpoint that is being made; becomes DST when it is whole
DST.calibration/       what was sampled, and the activations between blocks; deleted at the end
DST.calibration/rounded        the transformer before it is tuned, where it is
DST.calibration/tuning.npz     the state of tuning
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from qsjax.calibration.blocks import KINDS
from qsjax.calibration.loop import block_order, calibrate_blocks
from qsjax.calibration.methods import Method
from qsjax.calibration.refiner import layer_leaves, rounded_refiner
from qsjax.calibration.rounding import Rounded
from qsjax.calibration.trajectories import Gathered
from qsjax.calibration.tuning import tune
from qsjax.calibration.tuning_store import TuningStore
from qsjax.calibration.variables import effective_recipe
from qsjax.checkpoint import CheckpointWriter, Manifest, load_item, restore, write_atomically
from qsjax.config import from_mapping, to_mapping
from qsjax.dit import DiTConfig, load_dit
from qsjax.dit.abstract import abstract_dit
from qsjax.dit.stack import Kept
from qsjax.errors import InputError
from qsjax.params import find_parameter
from qsjax.quant import Recipe
from qsjax.versions import CALIBRATION, versions


class CheckpointSource:
    """Blocks of a checkpoint, read when they are asked for; the DiT's ends are in memory.

    Args:
        manifest: of a float checkpoint.
        dtype: of the ends and of the activations.
    """

    def __init__(self, manifest: Manifest, dtype: DTypeLike) -> None:
        self.manifest = manifest
        self._dtype = jnp.dtype(dtype)
        source = f"{manifest.directory}: dit config"
        self.config = from_mapping(DiTConfig, manifest.config("dit"), source=source)

        abstract = abstract_dit(self.config, dtype=dtype)
        del abstract.double_blocks, abstract.single_blocks
        self.ends = restore(
            manifest, "dit", abstract, dtype=self._dtype, wanted=lambda leaf: not _in_block(leaf)
        )
        self._items: dict[str, list[str]] = {}
        for item, leaf, _ in manifest.leaves("dit"):
            if _in_block(leaf):
                block = ".".join(leaf.split(".")[:2])
                self._items.setdefault(block, [])
                if item not in self._items[block]:
                    self._items[block].append(item)

    def leaves(self, kind: str, index: int) -> dict[str, np.ndarray]:
        """One block's weights, in the dtype of the activations."""
        block = f"{kind}.{index}"
        leaves: dict[str, np.ndarray] = {}
        for item in self._items[block]:
            for leaf, value in load_item(self.manifest, "dit", item).items():
                leaves[leaf.removeprefix(f"{block}.")] = np.asarray(value).astype(self._dtype)
        return leaves


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
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Write a quantized checkpoint.

    The same call after an interruption goes on after the last finished block, and ends with the same bits.

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
        overwrite: replace a finished checkpoint, at the end.
        progress: show a bar.

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
    writer = CheckpointWriter(destination, identity=identity, overwrite=overwrite)
    folder = _work_folder(destination.with_name(destination.name + ".calibration"), identity)
    gathered = gather(folder)
    origin = CheckpointSource(manifest, dtype)
    names = [f"{kind}.{index}" for kind, index in block_order(origin.config)]

    def calibrate_into(writer: CheckpointWriter) -> None:
        finished = writer.finished_items()
        done = next(
            (n for n, name in enumerate(names) if f"dit/{name}" not in finished), len(names)
        )

        def keep(kind: str, index: int, leaves: Mapping[str, Any], report: dict[str, Any]) -> None:
            block = f"{kind}.{index}"
            write_atomically(folder / f"{block}.json", json.dumps(report).encode())
            named = {f"{block}.{name}": np.asarray(leaf) for name, leaf in leaves.items()}
            writer.write_item("dit", block, named)

        if done < len(names):
            calibrate_blocks(
                origin, gathered.samples, recipe, method, keep,
                seed=seed, folder=folder, finished=done, progress=progress,
            )  # fmt: skip

    def finish(
        writer: CheckpointWriter, items: Mapping[str, list[str]], tuning: Any = None
    ) -> Manifest:
        data = _description(manifest, stored, method, described, reports(), tuning)
        data["components"] = {name: data["components"][name] for name in items}
        data["components"]["dit"]["bytes"] = sum(
            int(np.prod(spec["shape"])) * jnp.dtype(spec["dtype"]).itemsize
            for item, leaves in writer.finished_items().items()
            if item.startswith("dit/")
            for spec in leaves.values()
        )
        return writer.finish(data, items)

    def rounded_ends() -> dict[str, Rounded]:
        return rounded_refiner(origin.ends.refiner, gathered.samples, stored, method)

    def reports() -> list[dict[str, Any]]:
        return [json.loads((folder / f"{name}.json").read_text()) for name in names]

    for relative in manifest.files:
        writer.write_file(relative, (manifest.directory / relative).read_bytes())
    if method.tune_steps:
        rounded = folder / "rounded"
        if not rounded.exists():
            staged = CheckpointWriter(rounded, identity=identity)
            calibrate_into(staged)
            rest = _copy_rest(manifest, staged, stored, ["dit"], rounded_ends())
            finish(staged, {"dit": [*names, *rest["dit"]]})
        curve = _tune_into(
            writer, rounded, gathered, method, dtype, seed, mesh, kept, folder, progress
        )
        others = [name for name in manifest.components if name != "dit"]
        items = {
            "dit": list(Manifest.read(rounded).component("dit").items),
            **_copy_rest(manifest, writer, stored, others, {}),
        }
        whole = finish(writer, items, {"loss": curve})
    else:
        calibrate_into(writer)
        rest = _copy_rest(manifest, writer, stored, list(manifest.components), rounded_ends())
        whole = finish(writer, {**rest, "dit": [*names, *rest["dit"]]})
    blocks = reports()
    shutil.rmtree(folder)
    return whole, blocks


def _work_folder(folder: Path, identity: str) -> Path:
    """The folder of an unfinished calibration; emptied where it is another's."""
    marker = folder / "identity"
    if folder.exists() and not (marker.exists() and marker.read_text("utf-8") == identity):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_atomically(marker, identity.encode())
    return folder


def _tune_into(
    writer: CheckpointWriter,
    rounded: Path,
    gathered: Gathered,
    method: Method,
    dtype: DTypeLike,
    seed: int,
    mesh: Mesh | None,
    kept: Kept,
    folder: Path,
    progress: bool,
) -> list[float]:
    """Tune a checkpoint's transformer and write all of its items; return the loss of every step."""
    if gathered.trajectories is None:
        raise ValueError(f"method {method.name} tunes end to end, and there are no trajectories")
    store = TuningStore(folder / "tuning.npz")
    tuned, curve = tune(
        load_dit(rounded, dtype=jnp.dtype(dtype)), gathered.trajectories, method,
        seed=seed, kept=kept, mesh=mesh, store=store, progress=progress,
    )  # fmt: skip
    manifest, finished = Manifest.read(rounded), writer.finished_items()
    for item in manifest.component("dit").items:
        if f"dit/{item}" in finished:
            continue
        leaves = {leaf: np.asarray(x) for leaf, x in load_item(manifest, "dit", item).items()}
        for leaf in leaves:
            place = find_parameter(leaf, tuned)
            if place is not None:
                name, row = place
                leaves[leaf] = tuned[name] if row is None else tuned[name][row]
        writer.write_item("dit", item, leaves)
    return curve


def _copy_rest(
    manifest: Manifest,
    writer: CheckpointWriter,
    recipe: Recipe,
    components: Collection[str],
    rounded: Mapping[str, Rounded],
) -> dict[str, list[str]]:
    """Copy everything outside the blocks of some components, quantized layers (the refiner's) as they were `rounded`, or to nearest.

    Returns:
        Component -> items.
    """
    finished, names = writer.finished_items(), {}
    for component in components:
        stored, names[component] = manifest.component(component), []
        for item, specifications in stored.items.items():
            if component == "dit" and any(map(_in_block, specifications)):
                continue
            names[component].append(item)
            if f"{component}/{item}" in finished:
                continue
            paths = {leaf: _without_index(leaf.rpartition(".")[0]) for leaf in specifications}
            if component == "dit" and any(recipe.precision(p).quantized for p in paths.values()):
                loaded = load_item(manifest, component, item)
                writer.write_item(component, item, _rounded(loaded, paths, recipe, rounded))
            else:
                writer.copy_item(manifest.directory, component, item, specifications)
    return names


def _rounded(
    leaves: Mapping[str, Any],
    paths: Mapping[str, str],
    recipe: Recipe,
    rounded: Mapping[str, Rounded],
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for leaf, value in leaves.items():
        layer, _, name = leaf.rpartition(".")
        precision = recipe.precision(paths[leaf])
        if not precision.quantized or name not in ("kernel", "bias"):
            found[leaf] = np.asarray(value)
        elif name == "bias":
            found[leaf] = np.asarray(value, np.float32)
        else:
            quantized = layer_leaves(layer, value, recipe, rounded)
            found |= {f"{layer}.{part}": array for part, array in quantized.items()}
    return found


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
    weights = [spec["sha256"] for _, _, spec in manifest.leaves("dit")]
    content = [weights, to_mapping(recipe), to_mapping(method), dict(described), seed, dtype.name]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _in_block(leaf: str) -> bool:
    return leaf.split(".")[0] in KINDS


def _without_index(path: str) -> str:
    return ".".join(part for part in path.split(".") if not part.isdecimal())
