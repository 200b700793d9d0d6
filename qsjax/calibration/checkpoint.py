"""Calibrating a checkpoint: float blocks are read and quantized blocks are written one by one; a killed run resumes.

DST.tmp/               the checkpoint that is being made; becomes DST when it is whole
DST.calibration/       samples.npz, and the activations between blocks; deleted at the end
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from qsjax.calibration.blocks import KINDS
from qsjax.calibration.loop import block_order, calibrate_blocks
from qsjax.calibration.methods import Method
from qsjax.calibration.samples import Samples
from qsjax.calibration.variables import effective_recipe
from qsjax.checkpoint import CheckpointWriter, Manifest, load_item, restore, write_atomically
from qsjax.config import from_mapping, to_mapping
from qsjax.dit import DiTConfig
from qsjax.dit.abstract import abstract_dit
from qsjax.errors import InputError
from qsjax.quant import Recipe
from qsjax.quant.storage import linear_leaves
from qsjax.versions import CALIBRATION, versions

_SAMPLES = "samples.npz"


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
    samples: Callable[[], Samples],
    recipe: Recipe,
    method: Method,
    *,
    described: Mapping[str, Any],
    seed: int = 0,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Write a quantized checkpoint.

    The same call after an interruption goes on after the last finished block, and ends with the same bits.

    Args:
        source: a float checkpoint.
        destination: directory to appear.
        samples: makes the calibration samples; not called where an earlier run has stored them.
        recipe: bits and transforms.
        method: how they are found.
        described: everything that the samples depend on (captions, size, seed): part of what is resumed.
        seed: of the order of samples.
        dtype: of activations; None is bfloat16.
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
    folder = destination.with_name(destination.name + ".calibration")
    finished = writer.finished_items()
    if not any(item.startswith("dit/") for item in finished):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    inputs = _stored_samples(folder, samples)
    origin = CheckpointSource(manifest, dtype)
    order = block_order(origin.config)
    names = [f"{kind}.{index}" for kind, index in order]
    done = next((n for n, name in enumerate(names) if f"dit/{name}" not in finished), len(names))

    def keep(kind: str, index: int, leaves: Mapping[str, Any], report: dict[str, Any]) -> None:
        block = f"{kind}.{index}"
        write_atomically(folder / f"{block}.json", json.dumps(report).encode())
        named = {f"{block}.{name}": np.asarray(leaf) for name, leaf in leaves.items()}
        writer.write_item("dit", block, named)

    if done < len(order):
        calibrate_blocks(
            origin, inputs, recipe, method, keep,
            seed=seed, folder=folder, finished=done, progress=progress,
        )  # fmt: skip
    rest = _copy_rest(manifest, writer, stored)
    reports = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    data = _description(manifest, stored, method, described, reports)
    data["components"]["dit"]["bytes"] = sum(
        int(np.prod(spec["shape"])) * jnp.dtype(spec["dtype"]).itemsize
        for item, leaves in writer.finished_items().items()
        if item.startswith("dit/")
        for spec in leaves.values()
    )
    whole = writer.finish(data, {**rest, "dit": [*names, *rest["dit"]]})
    shutil.rmtree(folder)
    return whole, reports


def _copy_rest(
    manifest: Manifest, writer: CheckpointWriter, recipe: Recipe
) -> dict[str, list[str]]:
    """Copy everything outside the blocks, the refiner's layers rounded to nearest; return component -> items."""
    finished, names = writer.finished_items(), {}
    for component, stored in manifest.components.items():
        names[component] = []
        for item, specifications in stored.items.items():
            if component == "dit" and any(map(_in_block, specifications)):
                continue
            names[component].append(item)
            if f"{component}/{item}" in finished:
                continue
            paths = {leaf: _without_index(leaf.rpartition(".")[0]) for leaf in specifications}
            if component == "dit" and any(recipe.precision(p).quantized for p in paths.values()):
                loaded = load_item(manifest, component, item)
                writer.write_item(component, item, _rounded(loaded, paths, recipe))
            else:
                writer.copy_item(manifest.directory, component, item, specifications)
    for relative in manifest.files:
        writer.write_file(relative, (manifest.directory / relative).read_bytes())
    return names


def _rounded(
    leaves: Mapping[str, Any], paths: Mapping[str, str], recipe: Recipe
) -> dict[str, np.ndarray]:
    rounded: dict[str, np.ndarray] = {}
    for leaf, value in leaves.items():
        layer, _, name = leaf.rpartition(".")
        precision = recipe.precision(paths[leaf])
        if not precision.quantized or name not in ("kernel", "bias"):
            rounded[leaf] = np.asarray(value)
        elif name == "bias":
            rounded[leaf] = np.asarray(value, np.float32)
        else:
            quantized = linear_leaves(value, precision)
            rounded |= {f"{layer}.{part}": array for part, array in quantized.items()}
    return rounded


def _description(
    manifest: Manifest,
    recipe: Recipe,
    method: Method,
    described: Mapping[str, Any],
    reports: list[dict[str, Any]],
) -> dict[str, Any]:
    """The manifest of the new checkpoint but for its items: the old one's, and how the DiT was quantized."""
    data = {key: value for key, value in manifest.data.items() if key != "format_version"}
    data["components"] = {name: dict(part) for name, part in manifest.data["components"].items()}
    dit = data["components"]["dit"]
    dit["recipe"], dit["clipped"] = to_mapping(recipe), method.learn_clips
    dit["calibration"] = {
        "method": to_mapping(method),
        "samples": dict(described),
        "libraries": versions(CALIBRATION),
        "blocks": reports,
    }
    return data


def _stored_samples(folder: Path, samples: Callable[[], Samples]) -> Samples:
    path = folder / _SAMPLES
    if not path.exists():
        collected = samples()
        buffer = io.BytesIO()
        present = {name: value for name, value in collected._asdict().items() if value is not None}
        arrays: Any = {name: np.asarray(value, _plain(value)) for name, value in present.items()}
        np.savez(buffer, **arrays)
        write_atomically(path, buffer.getvalue())
    with np.load(path, allow_pickle=False) as stored:
        return Samples(**{name: stored[name] for name in stored.files})


def _plain(value: jax.Array | np.ndarray) -> np.dtype:
    """`.npz` knows no bfloat16."""
    return np.dtype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value.dtype


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
