"""One component of the source, opened and found complete: nothing is written before all of them are."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint_source import CheckpointSource
from convert.configuration import configuration
from convert.containers import Source, TensorInfo, open_source
from convert.containers.listing import first_few
from convert.finite import require_finite
from convert.gguf_layout import arranged
from convert.keymaps import Row, check, detect, expand
from convert.keymaps.detect import TITLES, ComponentConfig, Layout
from convert.lora.merged import with_lora
from convert.sources import Sources
from qsjax.checkpoint import Manifest
from qsjax.config import to_mapping
from qsjax.dit.config import DiTConfig
from qsjax.errors import CheckpointError
from qsjax.untrusted import shown

_STORED = ("float32", "bfloat16", "float16")
_CHUNK = 16 << 20
"""Bytes of a tensor that is cast, at once."""


@dataclass(frozen=True)
class Component:
    """A component whose tensors are known to be exactly those its configuration asks for.

    Attributes:
        name: "dit", "vae", "llama" or "clip".
        path: where the weights are.
        source: its open container.
        config: the component's config dataclass.
        layout: how the source names its tensors.
        rows: the leaves to write, with the tensors they are made of.
        ignored: tensors left out on purpose.
        dtype: dtype to store, None keeps the source's.
    """

    name: str
    path: Path
    source: Source
    config: ComponentConfig
    layout: Layout
    rows: tuple[Row, ...]
    ignored: tuple[str, ...]
    dtype: np.dtype | None

    def stored_dtype(self, row: Row) -> np.dtype:
        """The dtype in which a leaf is stored."""
        if self.dtype is not None:
            return self.dtype
        return self.source.stored_dtype(next(iter(row.sources)))

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """A tensor of the source, or a range of its rows.

        Raises:
            CheckpointError: it holds values that are NaN or infinite.
        """
        array = self.source.read(name, rows)
        require_finite(
            array, f"{self.path}: tensor {shown(name)}", "get the file again from its source"
        )
        return array

    def read_stored(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """A tensor in the dtype in which it is stored.

        One that the source gives more precisely than it is kept is made in ranges of rows, so that its float32 is never held whole.

        Raises:
            CheckpointError: it holds values that are NaN or infinite.
        """
        info, stored = self.source.tensors[name], self.source.stored_dtype(name)
        kept = stored if self.dtype is None else self.dtype
        if info.dtype in (stored, kept) or not info.shape:
            return self.read(name, rows).astype(kept, copy=False)
        start, stop = (0, info.shape[0]) if rows is None else rows
        array = np.empty((stop - start, *info.shape[1:]), kept)
        step = max(1, _CHUNK // max(1, info.nbytes // max(1, info.shape[0])))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            array[first - start : last - start] = self.read(name, (first, last))
        return array

    def leaf(self, row: Row, rows: tuple[int, int] | None = None) -> np.ndarray:
        """A leaf as it is stored, or a range of rows of one that is not rearranged."""
        if rows is None:
            return row.to_leaf(self.read_stored)
        (name,) = row.sources
        return self.read_stored(name, rows)

    def outputs(self, row: Row) -> dict[str, TensorInfo]:
        """The leaves that are stored of a row, before any tensor is read."""
        return {row.leaf: TensorInfo(row.shape, self.stored_dtype(row))}

    def made(self, row: Row, rows: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """These leaves, or a range of rows of one that is not rearranged.

        Raises:
            CheckpointError: the source holds values that are NaN or infinite, or too large for the stored dtype.
        """
        read = {self.source.tensors[name].dtype for name in row.sources}
        with np.errstate(over="ignore", invalid="ignore"):
            leaves = self.make(row, rows)
        for leaf, array in leaves.items():
            if {array.dtype} != read or len(leaves) > 1:  # else they are what was read
                require_finite(
                    array, f"{self.path}: {leaf} in {array.dtype}", "name another `dtype`"
                )
        return leaves

    def make(self, row: Row, rows: tuple[int, int] | None) -> dict[str, np.ndarray]:
        """What `made` looks through; of another storage, other leaves."""
        return {row.leaf: self.leaf(row, rows)}

    def details(self) -> dict[str, Any]:
        """What the manifest says of this component only."""
        return {}

    def digest(self) -> str:
        """What the source holds, without reading its tensors: names, shapes and dtypes."""
        tensors = {
            name: [list(info.shape), info.dtype.name] for name, info in self.source.tensors.items()
        }
        content = [self.name, tensors, to_mapping(self.config), str(self.dtype), *self.source.lora]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def open_components(sources: Sources, dtype: np.dtype | None) -> Iterator[dict[str, Component]]:
    """Open every component of the sources; they are closed at the end of the block.

    Args:
        sources: the PyTorch files.
        dtype: to store; None keeps the sources'.

    Raises:
        InputError: a configuration is absent or does not describe this model.
        CheckpointError: a container is damaged, or its tensors do not fit its configuration.
    """
    configs = {"dit": sources.config, "vae": sources.vae_config}
    with ExitStack() as stack:
        parts = {
            name: _open(stack, name, path, configs.get(name), dtype, sources)
            for name, path in sources.components().items()
        }
        if sources.lora:
            dit = parts["dit"]
            assert isinstance(dit.config, DiTConfig)
            merged = with_lora(dit.source, dit.config, dit.rows, sources.lora, sources.files)
            parts["dit"] = replace(dit, source=stack.enter_context(merged))
        yield parts


def _open(
    stack: ExitStack,
    name: str,
    path: Path,
    config_path: Path | None,
    dtype: np.dtype | None,
    sources: Sources,
) -> Component:
    if path == sources.checkpoint:
        source: Source = stack.enter_context(CheckpointSource(Manifest.read(path), name))
    else:
        source = stack.enter_context(open_source(path, name, sources.files))
    config, origin = configuration(name, path, source, config_path)
    place = f"{path} (sizes: {origin})"
    layout = detect(name, config, source.tensors, source=place)
    source = arranged(source, config, layout.name, expand(name, config, *layout))
    shapes = {tensor: tuple(info.shape) for tensor, info in source.tensors.items()}
    rows, ignored = check(name, config, layout, shapes, source=place)
    _check_dtypes(name, path, source, rows, dtype)
    return Component(name, path, source, config, layout, rows, ignored, dtype)


def _check_dtypes(
    name: str, path: Path, source: Source, rows: tuple[Row, ...], dtype: np.dtype | None
) -> None:
    """Weights are floating point; float64 only on its way to something smaller."""
    dtypes = {tensor: source.tensors[tensor].dtype.name for row in rows for tensor in row.sources}
    readable = _STORED if dtype is None else (*_STORED, "float64")
    wrong = [
        f"{tensor} {dtype_name}"
        for tensor, dtype_name in dtypes.items()
        if dtype_name not in readable
    ]
    if wrong:
        cure = "name a `dtype`" if dtype is None else "give the unquantized weights"
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors of the {TITLES[name]} are not {', '.join(readable)} "
            f"({first_few(wrong, 3)}); {cure}"
        )
