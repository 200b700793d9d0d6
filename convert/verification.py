"""Reading a checkpoint back and comparing every leaf with its checksum, and with the source."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.component import Component, open_components
from convert.containers.listing import first_few
from convert.quantized import Quantization, with_quantization
from convert.sources import Sources
from convert.stream import DTYPES
from convert.text_storage import TEXT_ENCODERS, stored_text_storage, with_text_storage
from qsjax.checkpoint import Manifest, digest, load_item
from qsjax.checkpoint.schema import leaf_bytes
from qsjax.errors import CheckpointError, InputError
from qsjax.progress import Progress
from qsjax.untrusted import shown


class Verified(NamedTuple):
    """What was found right.

    Attributes:
        leaves: stored pieces whose bytes match their checksum.
        from_source: those of them that were also made again from the source, with the same result.
        nbytes: their size in bytes.
        files: plain files that match their checksum.
    """

    leaves: int
    from_source: int
    nbytes: int
    files: int


def verify(checkpoint: Path, sources: Sources | None = None, *, progress: bool = True) -> Verified:
    """Re-read a checkpoint, one item at a time.

    Args:
        checkpoint: the directory to check.
        sources: the PyTorch files it came from; every leaf is made from them again, quantized as it was. None compares
            with the checksums in the manifest only.
        progress: show a bar in bytes.

    Raises:
        CheckpointError: bytes differ (the first leaves are named), files are absent, or the sources are others.
        InputError: sources are given for a checkpoint that was calibrated.
    """
    manifest = Manifest.read(checkpoint)
    wrong: list[str] = []
    leaves = from_source = nbytes = 0
    with ExitStack() as stack:
        parts: dict[str, Component] = {}
        if sources is not None:
            opened = stack.enter_context(open_components(sources, None))
            parts = with_quantization(opened, _quantization(manifest, opened))
            if set(TEXT_ENCODERS) & set(parts):
                parts = with_text_storage(parts, stored_text_storage(manifest))
        if "dit" in parts and "dit" in manifest.components:
            _require_same_lora(manifest, parts["dit"])
        if absent := sorted(set(parts) - set(manifest.components)):
            raise CheckpointError(
                f"{checkpoint}: has no {', '.join(absent)}, which the sources have; convert them with `overwrite=True`"
            )
        remade = {name: _Remade(part) for name, part in parts.items()}
        total = sum(
            leaf_bytes(spec) for name in manifest.components for _, _, spec in manifest.leaves(name)
        )
        bar = stack.enter_context(Progress(total, "verify", unit="B", enabled=progress))
        for name, component in manifest.components.items():
            for item, specifications in component.items.items():
                # All that differ are named, where loading would stop at the first.
                loaded = load_item(manifest, name, item, verify=False)
                for leaf, spec in specifications.items():
                    leaves, nbytes = leaves + 1, nbytes + leaf_bytes(spec)
                    if digest(np.asarray(loaded.pop(leaf))) != spec["sha256"]:
                        wrong.append(f"{name} {leaf} is not what was written")
                    elif name in remade:
                        from_source += 1
                        if not remade[name].agrees(leaf, spec):
                            wrong.append(f"{name} {leaf} is not what the source holds")
                    bar.advance(leaf_bytes(spec))
    files = manifest.files
    wrong.extend(
        f"{path} is not what was written" for path in files if not _file_matches(manifest, path)
    )
    if wrong:
        raise CheckpointError(
            f"{checkpoint}: {len(wrong)} of {leaves} leaves and {len(files)} files differ ({first_few(wrong)}); "
            f"convert the sources again with `overwrite=True`"
        )
    return Verified(leaves, from_source, nbytes, len(files))


def _require_same_lora(manifest: Manifest, part: Component) -> None:
    stored = manifest.components["dit"].source.get("lora", [])
    if _without_origin(stored) != _without_origin(part.source.lora):
        raise InputError(
            f"{manifest.directory}: its transformer has {_named(stored)} merged, and the sources have {_named(part.source.lora)}; "
            f"give `lora` as it was given, or verify the checkpoint without sources"
        )


def _without_origin(records: Iterable[object]) -> list[object]:
    """LoRA files by what they are, wherever they come from."""
    return [
        {key: value for key, value in record.items() if key != "origin"}
        if isinstance(record, Mapping)
        else record
        for record in records
    ]


def _named(records: Sequence[object]) -> str:
    """Merged LoRA files and their strengths, for a message."""
    named = (
        f"{shown(record.get('name'))} with strength {shown(record.get('strength'), 20)}"
        for record in records
        if isinstance(record, Mapping)
    )
    return first_few(named) or "no LoRA"


def _quantization(manifest: Manifest, opened: Mapping[str, Component]) -> Quantization | None:
    stored = manifest.components.get("dit") if "dit" in opened else None
    return None if stored is None else Quantization.stored(stored, str(manifest.directory))


class _Remade:
    """The leaves of a component, made from the source once more; those of one row are held."""

    def __init__(self, part: Component) -> None:
        self._rows = {leaf: row for row in part.rows for leaf in part.outputs(row)}
        # As it was asked for: a source may give its tensors more precisely than it keeps them.
        self._parts = {name: replace(part, dtype=np.dtype(name)) for name in DTYPES}
        self._part = part
        self._held: tuple[Any, dict[str, np.ndarray]] = (None, {})

    def agrees(self, leaf: str, spec: Mapping[str, Any]) -> bool:
        if leaf not in self._rows:
            return False
        row, bounds, dtype = self._rows[leaf], spec.get("rows"), spec["dtype"]
        if self._held[0] != (row.leaf, bounds):
            self._held = (None, {})
            part = self._parts.get(dtype, self._part)
            again = part.made(row, None if bounds is None else (bounds[0], bounds[1]))
            self._held = ((row.leaf, bounds), again)
        again = self._held[1][leaf].astype(np.dtype(dtype), copy=False)
        return digest(again) == spec["sha256"]


def _file_matches(manifest: Manifest, path: str) -> bool:
    try:
        manifest.read_file(path)
    except CheckpointError:
        return False
    return True
