"""A component of our own checkpoint, seen as its PyTorch tensors: for the way back, and for another conversion."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.containers import Source, TensorInfo
from convert.keymaps import Row, expand
from convert.keymaps.detect import ComponentConfig
from qsjax.checkpoint import MANIFEST, Manifest, load_item
from qsjax.config import from_mapping
from qsjax.dit.config import DiTConfig
from qsjax.errors import CheckpointError
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.vae.config import VAEConfig

_CONFIGS: Mapping[str, type[ComponentConfig]] = {
    "dit": DiTConfig,
    "vae": VAEConfig,
    "llama": LlamaConfig,
    "clip": ClipConfig,
}
_LAYOUTS = {
    "dit": "diffusers",
    "vae": "hunyuan",
    "llama": "transformers",
    "clip": "transformers",
}


class CheckpointSource(Source):
    """The tensors that a component was converted from, in the order in which its leaves are stored.

    One item and one leaf are held at a time; tensors that are read in this order load every item once.

    Attributes:
        layout: how the tensors are named.
        component_config: of the component.

    Raises:
        CheckpointError: the component is not there, or is stored in fewer bits.
    """

    container = "checkpoint"

    def __init__(self, manifest: Manifest, component: str) -> None:
        place = f"{manifest.directory}: {component}"
        self.component_config: ComponentConfig = from_mapping(
            _CONFIGS[component], manifest.config(component), source=f"{place} config"
        )
        self.layout = _LAYOUTS[component]
        merged = manifest.component(component).source.get("lora", [])
        self.lora = tuple(record for record in merged if isinstance(record, dict))
        self.files = (manifest.directory / MANIFEST,)
        self._manifest, self._component = manifest, component
        rows = {row.leaf: row for row in expand(component, self.component_config, self.layout)}
        self._pieces: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        for item, leaf, spec in manifest.leaves(component):
            self._pieces.setdefault(leaf, []).append((item, spec))
        if set(self._pieces) != set(rows):
            raise CheckpointError(
                f"{place} holds other leaves than its PyTorch original (it is quantized); name the checkpoint it was made from"
            )
        self._row_of: dict[str, Row] = {}
        tensors: dict[str, TensorInfo] = {}
        for leaf, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece[1].get("rows", [0])[0])
            _require_whole(place, rows[leaf], [spec for _, spec in pieces])
            for name, shape in rows[leaf].sources.items():
                self._row_of[name] = rows[leaf]
                tensors[name] = TensorInfo(shape, np.dtype(pieces[0][1]["dtype"]))
        self.tensors = tensors
        self._item: tuple[str, dict[str, Any]] = ("", {})
        self._made: tuple[str, dict[str, np.ndarray]] = ("", {})

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`; cheap if its neighbours were read before."""
        row, (start, stop) = self._row_of[name], rows or (0, self.tensors[name].shape[0])
        pieces = self._pieces[row.leaf]
        if len(pieces) > 1:  # of a table, whose rows are the tensor's
            parts = []
            for item, spec in pieces:
                first, last = spec["rows"]
                if max(first, start) < min(last, stop):
                    part = np.asarray(self._load(item)[row.leaf])
                    parts.append(part[max(start - first, 0) : stop - first])
            return np.concatenate(parts)
        if self._made[0] != row.leaf or name not in self._made[1]:
            self._made = ("", {})
            leaf = np.asarray(self._load(pieces[0][0])[row.leaf])
            self._made = (row.leaf, row.to_torch(leaf))
        if rows is not None:
            return self._made[1][name][start:stop].copy()
        whole = self._made[1].pop(name)  # nobody else holds it
        return whole if whole.flags.writeable else whole.copy()

    def close(self) -> None:
        """Let what is held go."""
        self._item, self._made = ("", {}), ("", {})

    def _load(self, item: str) -> dict[str, Any]:
        if self._item[0] != item:
            self._item = ("", {})
            self._item = (item, load_item(self._manifest, self._component, item))
        return self._item[1]


def _require_whole(place: str, row: Row, specifications: list[Mapping[str, Any]]) -> None:
    """The stored pieces of a leaf are all of it, in one dtype."""
    edge = 0
    for spec in specifications:
        first, last = spec.get("rows", [0, row.shape[0] if row.shape else 0])
        shape = [last - first, *row.shape[1:]] if row.shape else []
        if first != edge or spec["shape"] != shape or spec["dtype"] != specifications[0]["dtype"]:
            break
        edge = last
    else:
        if edge == (row.shape[0] if row.shape else 0):
            return
    raise CheckpointError(
        f"{place} does not fit its own configuration: {row.leaf} should have the shape {list(row.shape)}; "
        f"get the checkpoint again, or convert it again"
    )
