"""Checkpoints on disk: one directory, many small Orbax items, and a manifest that is written last.

    DST/manifest.json              what is inside; without it the directory is not a checkpoint
    DST/<component>/<item>/        one Orbax item: a flat dict of leaves, committed atomically
    DST/<path>                     plain files (tokenizers), listed in the manifest with their sha256

A component is a model ("dit", "vae", "llama", "clip"). A leaf is a parameter as the unstacked model
names it ("double_blocks.3.img_qkv.kernel"). Items are small, so that peak host memory follows the
largest leaf and an interrupted conversion resumes at the first item that is missing. A leaf too
large for one item is stored in row ranges.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qsjax.checkpoint.schema import Leaf, StoredComponent, check_manifest
from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import inside, read_bytes, read_object, shown

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_SEAL = "sha256"


class Manifest:
    """The parsed `manifest.json` of a checkpoint directory; what it says is checked when this is made.

    Args:
        directory: the checkpoint.
        data: the parsed JSON.

    Attributes:
        directory: the checkpoint.
        data: the whole manifest as plain data, for code that writes another manifest; readers use the rest.
        components: the models: "dit", "vae", "llama", "clip".
        files: plain files (tokenizers): path -> size and sha256.
        digest: sha256 of the manifest's content.

    Raises:
        CheckpointError: it was written by a newer version of qsjax, is damaged, or says what cannot be.
    """

    def __init__(self, directory: Path, data: Mapping[str, Any]) -> None:
        source = str(directory / MANIFEST)
        version = data.get("format_version")
        if isinstance(version, bool) or not isinstance(version, int) or "components" not in data:
            raise CheckpointError(
                f"{source}: is not a qsjax manifest; convert the checkpoint again"
            )
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{directory}: has checkpoint format {shown(version)}, this qsjax reads up to {FORMAT_VERSION}; upgrade qsjax"
            )
        if version < 1:
            raise CheckpointError(
                f"{source}: has format version {version}, which never was; convert the checkpoint again"
            )
        self.directory, self.data = directory, {k: v for k, v in data.items() if k != _SEAL}
        self.digest = _digest(self.data)
        if _SEAL in data and data[_SEAL] != self.digest:
            raise CheckpointError(
                f"{source}: is damaged, its sha256 is not the one in it; get the checkpoint again, or convert it again"
            )
        self.components, self.files = check_manifest(self.data, source)

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> "Manifest":
        """Open a checkpoint directory.

        Raises:
            CheckpointError: not a directory, no manifest, or one that is refused (see the class).
        """
        path = Path(directory)
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: not a checkpoint folder (nothing there); convert one with `qsjax convert SRC {path}`"
            )
        if not os.path.lexists(path / MANIFEST):
            raise CheckpointError(
                f"{path}: not a checkpoint (no {MANIFEST}); convert one with `qsjax convert SRC {path}`"
            )
        try:
            return cls(path, read_object(path / MANIFEST))
        except InputError as error:
            raise CheckpointError(str(error)) from error

    @property
    def content_digest(self) -> str:
        """sha256 of what the models compute with: configurations, weights, tokenizers, template, tiles.

        Unlike `digest` it is the same for two conversions of the same files.
        """
        parts = {name: self.component_digest(name) for name in self.components}
        return _digest({"components": parts, "files": self.files, "prompt": self.prompt, "tiling": self.tiling})  # fmt: skip

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

    def read_file(self, path: str) -> bytes:
        """A plain file of the checkpoint.

        Args:
            path: inside the checkpoint, as the manifest lists it.

        Raises:
            CheckpointError: it is not listed or not there, is a link, or is not what was written.
        """
        if path not in self.files:
            raise CheckpointError(
                f"{self.directory}: {path} is not in the manifest; convert the checkpoint again"
            )
        listed = self.files[path]
        try:
            content = read_bytes(
                inside(self.directory, path, f"{self.directory / MANIFEST}: a file"),
                listed["bytes"],
            )
        except InputError as error:
            raise CheckpointError(str(error)) from error
        if hashlib.sha256(content).hexdigest() != listed["sha256"]:
            raise CheckpointError(
                f"{self.directory / path}: is not what was written (its sha256 differs); get the checkpoint again, or convert it again"
            )
        return content

    def component(self, name: str) -> StoredComponent:
        """A model of the checkpoint.

        Raises:
            CheckpointError: the checkpoint has no such component.
        """
        if name not in self.components:
            raise CheckpointError(
                f"{self.directory}: has no {name!r} component, only {', '.join(sorted(self.components)) or 'none'};"
                f" convert again with its source"
            )
        return self.components[name]

    def component_digest(self, name: str) -> str:
        """sha256 of a model's configuration and weights.

        Raises:
            CheckpointError: the checkpoint has no such component.
        """
        part = self.component(name)
        return _digest({"config": part.config, "items": part.items, "recipe": part.recipe, "clipped": part.clipped, "storage": part.storage})  # fmt: skip

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


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the sha256 of its own content, by which a reader notices damage.

    Args:
        data: plain data.
    """
    content = {key: value for key, value in data.items() if key != _SEAL}
    return {**content, _SEAL: _digest(content)}


def _digest(data: Mapping[str, Any]) -> str:
    """sha256 of plain data, whatever the order of its keys and the spaces in its file."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
