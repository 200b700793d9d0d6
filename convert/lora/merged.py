"""A transformer's tensors with LoRAs added, one tensor at a time, in float32: W + strength * alpha / rank * up @ down.

Products are summed in float64 and rounded once, so that another processor or number of threads makes the same bits, which
verification compares.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.containers import Source, TensorInfo
from convert.containers.files import Files
from convert.keymaps import Row
from convert.lora.file import LoraFile, Update
from convert.lora.modules import Place, layers, places
from convert.lora.request import Lora
from qsjax.dit.config import DiTConfig

_CHUNK = 16 << 20
"""Bytes of a change in float64 that are made at once."""


class _Part(NamedTuple):
    """An update of a tensor.

    Attributes:
        file: where it is from.
        update: what it adds.
        shift: rows of the tensor before the update's first one; negative if the update begins before the tensor.
        swapped: whether the halves of the update's rows are exchanged in the tensor.
    """

    file: LoraFile
    update: Update
    shift: int
    swapped: bool


class MergedSource(Source):
    """A source whose linear layers have LoRAs added: these read as float32 and are kept in the dtype that they had.

    Args:
        source: of the transformer.
        rows: what its tensors make, in its layout.
        files: LoRAs for a transformer of this size.
    """

    def __init__(self, source: Source, rows: Iterable[Row], files: Sequence[LoraFile]) -> None:
        self._source = source
        self.files, self.config, self.ignored = source.files, source.config, source.ignored
        self.metadata, self.container = source.metadata, source.container
        self.lora = (*source.lora, *(file.record for file in files))
        self._parts: dict[str, list[_Part]] = {}
        updates = [(file, update) for file in files for update in file.updates if update.factor]
        for row in rows:
            for layer, place in places(row.leaf, row.sources, row.transform).items():
                parts = [
                    _part(file, update, place)
                    for file, update in updates
                    if _meet(update.place, place)
                ]
                if parts:
                    self._parts[f"{layer}.weight"] = parts
        self.tensors = {
            name: TensorInfo(info.shape, np.dtype(np.float32)) if name in self._parts else info
            for name, info in source.tensors.items()
        }

    def stored_dtype(self, name: str) -> np.dtype:
        """See `Source.stored_dtype`."""
        return self._source.stored_dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        array = self._source.read(name, rows)
        if name not in self._parts:
            return array
        array = array.astype(np.float32, copy=False)
        matrix = array.reshape(len(array), -1)
        start = 0 if rows is None else rows[0]
        step = max(1, _CHUNK // (8 * max(1, matrix.shape[1])))
        for file, update, shift, swapped in self._parts[name]:
            down, count, offset = file.down(update), update.place.shape[0], start - shift
            first, last = max(-offset, 0), min(count - offset, len(matrix))
            for begin in range(first, last, step):
                end = min(begin + step, last)
                of_update = (begin + offset, end + offset)
                if swapped:
                    up = np.roll(file.up(update), count // 2, axis=0)[slice(*of_update)]
                else:
                    up = file.up(update, of_update)
                change = up @ down
                change *= update.factor
                matrix[begin:end] = matrix[begin:end] + change
        return array

    def files_of(self, name: str) -> tuple[Path, ...]:
        """See `Source.files_of`; LoRAs are here all the time."""
        return self._source.files_of(name)

    def close(self) -> None:
        """Close the transformer's files."""
        self._source.close()


@contextmanager
def with_lora(
    source: Source, config: DiTConfig, rows: Sequence[Row], loras: Sequence[Lora], hub: Files
) -> Generator[Source, None, None]:
    """The source with LoRAs merged; their files are closed at the end of the block, and the source stays open.

    Args:
        source: of the transformer.
        config: of it.
        rows: what its tensors make, in its layout.
        loras: what is merged.
        hub: where these files are; those of the hub are fetched.

    Raises:
        InputError: a file cannot be opened.
        CheckpointError: a file is damaged, of another kind, or for another model.
    """
    named = layers(config)
    with ExitStack() as stack:
        files: list[LoraFile] = []
        for lora in loras:
            files.append(LoraFile(lora, named, hub))
            stack.callback(files[-1].close)
        yield MergedSource(source, rows, files)


def _meet(update: Place, tensor: Place) -> bool:
    """Whether an update changes rows of a tensor."""
    return (
        update.leaf == tensor.leaf
        and update.start < tensor.start + tensor.shape[0]
        and tensor.start < update.start + update.shape[0]
    )


def _part(file: LoraFile, update: Update, place: Place) -> _Part:
    swapped = update.place.swapped != place.swapped
    return _Part(file, update, update.place.start - place.start, swapped)
