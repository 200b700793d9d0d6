"""One LoRA file: every tensor is used or refused by name, and every number is looked at, before anything is written."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.containers.files import Files
from convert.containers.listing import first_few
from convert.finite import require_finite
from convert.lora.modules import Place, underscored
from convert.lora.names import Key, other_kind, parse_key
from convert.lora.pieces import pieces_of
from convert.lora.request import Lora, only_file, require_suffix
from convert.lora.scaling import Scaling, require_alpha
from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import shown
from qsjax.untrusted.files import shown_path

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_LARGEST = 1e30
"""Of a change's numbers, as far as those of up and down bound them."""
_HASH_BLOCK = 8 << 20


class Update(NamedTuple):
    """What is added to rows `start` and following of a leaf: factor * up @ down.

    Attributes:
        place: the layer, or the part of it that a split LoRA is for.
        up: name of a tensor [rows, rank].
        down: name of a tensor [rank, ...].
        factor: strength and alpha over rank.
    """

    place: Place
    up: str
    down: str
    factor: float


class LoraFile:
    """An open LoRA file, of which every tensor has its place in the transformer.

    Args:
        lora: what is asked for.
        named: the transformer's layers in all layouts.
        files: where the file is.

    Attributes:
        updates: what it adds.
        record: its name, sha256, strength and number of layers, for the manifest, which adds the address where it was published.

    Raises:
        InputError: the file cannot be opened, or is none that is read.
        CheckpointError: it is damaged, of another kind, or for another model.
    """

    def __init__(self, lora: Lora, named: Mapping[str, Place], files: Files) -> None:
        path = _weights(lora.path)
        files.fetch(path)
        self._file = files.open_safetensors(path)
        try:
            self.updates = self._find(path, lora, named)
            self._require_numbers(path)
            self.record: dict[str, Any] = {
                "name": path.name,
                "sha256": _sha256(path),
                "strength": lora.strength,
                "layers": len({update.place[:2] for update in self.updates}),
            }
            files.require_listed(path, self.record["sha256"])
        except BaseException:
            self._file.close()
            raise

    def up(self, update: Update, rows: tuple[int, int] | None = None) -> np.ndarray:
        """[rows, rank] in float64, or a range of these rows."""
        return self._matrix(update.up, rows)

    def down(self, update: Update) -> np.ndarray:
        """[rank, columns] in float64."""
        return self._matrix(update.down)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _matrix(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        array = self._file.read(name, rows).astype(np.float64)
        return array.reshape(len(array), -1)

    def _find(self, path: Path, lora: Lora, named: Mapping[str, Place]) -> tuple[Update, ...]:
        tensors, flat = self._file.tensors, underscored(named)
        scaling = Scaling.find(path, self._file.metadata)
        problems: list[str] = []
        found: dict[Place, dict[tuple[str, int | None], tuple[str, Key]]] = {}
        for name, info in tensors.items():
            if (kind := other_kind(name)) is not None:
                raise CheckpointError(
                    f"{path}: {shown(name, 200)} is of {kind}, and only plain LoRA of the transformer is merged; use another file"
                )
            key = parse_key(name)
            place = None if key is None else (flat if key.underscored else named).get(key.layer)
            if key is None or place is None:
                problems.append(f"{shown(name, 120)} is of no layer of this transformer")
            elif info.dtype.name not in _DTYPES and key.part != "alpha":
                problems.append(f"{shown(name, 120)} is {info.dtype}")
            elif (key.part, key.number) in found.setdefault(place, {}):
                problems.append(f"{shown(name, 120)} is there twice")
            else:
                found[place][key.part, key.number] = (name, key)
        layers = {key.layer for parts in found.values() for _, key in parts.values()}
        if unused := scaling.unused(layers):
            raise CheckpointError(
                f"{path}: alpha_pattern names {first_few(map(shown, unused), 3)}, and no layer of the file is called so; get it again from its source"
            )
        updates: list[Update] = []
        for place, parts in found.items():
            title = shown(next(iter(parts.values()))[0], 120)
            alpha = self._alpha(path, parts.pop(("alpha", None), None))
            pieces, problem = pieces_of(place, parts, tensors)
            if problem:
                problems.append(f"{title}: {problem}")
            for piece, up, (down, key) in pieces:
                factor = scaling.factor(key.layer, tensors[down].shape[0], alpha)
                updates.append(Update(piece, up, down, lora.strength * factor))
        if not updates and not problems:
            problems.append("it has no tensors")
        if problems:
            raise CheckpointError(
                f"{path}: is no LoRA for this transformer: {first_few(problems, 5)}; use one that was made for HunyuanVideo, text to video"
            )
        return tuple(updates)

    def _alpha(self, path: Path, found: tuple[str, Key] | None) -> float | None:
        if found is None:
            return None
        name, info = found[0], self._file.tensors[found[0]]
        if info.shape not in ((), (1,)) or info.dtype.name in ("bool", "float8_e4m3fn", "float8_e5m2"):  # fmt: skip
            raise CheckpointError(
                f"{path}: {shown(name)} is {info.dtype} {list(info.shape)} and should be one number; get the file again from its source"
            )
        value = float(self._file.read(name).reshape(()).astype(np.float64))
        return require_alpha(value, f"{path}: {shown(name)}")

    def _require_numbers(self, path: Path) -> None:
        largest: dict[str, float] = {}
        for update in self.updates:
            for name in (update.up, update.down):
                array = self._file.read(name)
                require_finite(
                    array, f"{path}: {shown(name)}", "get the file again from its source"
                )
                largest[name] = float(np.abs(array.astype(np.float64)).max(initial=0))
            rank = self._file.tensors[update.down].shape[0]
            if largest[update.up] * largest[update.down] * rank * abs(update.factor) > _LARGEST:
                raise CheckpointError(
                    f"{path}: {shown(update.up)} times {shown(update.down)} is more than {_LARGEST:g}; get the file again from its source"
                )


def _weights(path: Path) -> Path:
    """The file, or the only .safetensors file of a folder."""
    if os.path.isdir(path):
        names = (file.name for file in path.glob("*") if file.is_file())
        return path / only_file(names, shown_path(path))
    require_suffix(path.name, shown_path(path))
    return path


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK):
                state.update(block)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check the disk and do the same again"
        ) from error
    return state.hexdigest()
