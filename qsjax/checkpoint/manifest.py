"""Checkpoints on disk: one directory, many small Orbax items, and a manifest that is written last.

    DST/manifest.json              what is inside; without it the directory is not a checkpoint
    DST/<component>/<item>/        one Orbax item: a flat dict of leaves, committed atomically
    DST/<path>                     plain files (tokenizers), listed in the manifest with their sha256

A component is a model ("dit", "vae", "llama", "clip"). A leaf is a parameter as the unstacked model
names it ("double_blocks.3.img_qkv.kernel"). Items are small, so that peak host memory follows the
largest leaf and an interrupted conversion resumes at the first item that is missing. A leaf too
large for one item is stored in row ranges.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from qsjax.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class Leaf(TypedDict):
    """A stored piece: a parameter, or rows of a large one."""

    shape: list[int]
    dtype: str
    sha256: str
    rows: NotRequired[list[int]]


@dataclass(frozen=True, kw_only=True)
class StoredComponent:
    """A model's entry in the manifest; absent fields have the defaults here.

    Attributes:
        config: of the model.
        items: item -> leaf -> what is stored.
        recipe: by which a transformer is quantized, as plain data; None in full precision.
        method: of `qsjax convert --quantize` that quantized it; None if calibration did, or nothing.
        clipped: whether its quantized activations have a learned clip.
        calibration: how it was calibrated; None if it was not.
        storage: "int8" if the linear layers of a text encoder are stored in 8 bits; None as in the source.
        parameters: their number.
        bytes: of all leaves.
        source: the PyTorch files it was converted from.
        seconds: that its conversion took.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    items: Mapping[str, Mapping[str, Leaf]] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    method: str | None = None
    clipped: bool = False
    calibration: Mapping[str, Any] | None = None
    storage: str | None = None
    parameters: int = 0
    bytes: int = 0
    source: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


_KNOWN = {known.name for known in fields(StoredComponent)}


class Manifest:
    """The parsed `manifest.json` of a checkpoint directory.

    Attributes:
        directory: the checkpoint.
        data: the whole manifest as plain data, for code that writes another manifest; readers use the properties below.
    """

    def __init__(self, directory: Path, data: dict[str, Any]) -> None:
        self.directory, self.data = directory, data

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> "Manifest":
        """Open a checkpoint directory.

        Raises:
            CheckpointError: not a directory, no manifest, or written by a newer version of qsjax.
        """
        path = Path(directory)
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: not a checkpoint folder (nothing there); convert one with `qsjax convert SRC {path}`"
            )
        try:
            data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path}: not a checkpoint (no {MANIFEST}); convert one with `qsjax convert SRC {path}`"
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path / MANIFEST}: cannot be read ({error}); convert the checkpoint again"
            ) from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if not isinstance(version, int) or not isinstance(data.get("components"), dict):
            raise CheckpointError(
                f"{path / MANIFEST}: is not a qsjax manifest; convert the checkpoint again"
            )
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: has checkpoint format {version}, this qsjax reads up to {FORMAT_VERSION}; upgrade qsjax"
            )
        return cls(path, data)

    @property
    def components(self) -> dict[str, StoredComponent]:
        """The models: "dit", "vae", "llama", "clip"."""
        return {
            name: StoredComponent(**{key: raw[key] for key in _KNOWN & set(raw)})
            for name, raw in self.data["components"].items()
        }

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Plain files (tokenizers): path -> size and sha256."""
        return self.data.get("files", {})

    @property
    def generation(self) -> Mapping[str, Any]:
        """How the model is best sampled: fields of `qsjax.sample.Settings`."""
        return {**self.data.get("scheduler", {}), **self.data.get("generation", {})}

    @property
    def tiling(self) -> Mapping[str, Any]:
        """How the autoencoder cuts a video: fields of `qsjax.vae.Tiling`."""
        return self.data.get("tiling", {})

    @property
    def prompt(self) -> Mapping[str, Any] | None:
        """The prompt template: fields of `qsjax.text.PromptTemplate`; None without text encoders."""
        return self.data.get("prompt")

    def component(self, name: str) -> StoredComponent:
        """A model of the checkpoint.

        Raises:
            CheckpointError: the checkpoint has no such component.
        """
        components = self.components
        if name not in components:
            raise CheckpointError(
                f"{self.directory}: has no {name!r} component, only {', '.join(sorted(components)) or 'none'};"
                f" convert again with its source"
            )
        return components[name]

    def config(self, component: str) -> Mapping[str, Any]:
        """The stored configuration of a component.

        Raises:
            CheckpointError: the checkpoint has no such component.
        """
        return self.component(component).config

    def leaves(self, component: str) -> Iterator[tuple[str, str, Leaf]]:
        """Every stored piece as (item, leaf, specification), in the order it was written."""
        for item, leaves in self.component(component).items.items():
            for leaf, specification in leaves.items():
                yield item, leaf, specification
