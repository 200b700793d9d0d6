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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qsjax.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class Manifest:
    """The parsed `manifest.json` of a checkpoint directory.

    Attributes:
        directory: the checkpoint.
        data: the whole manifest as plain data. `data["components"][name]` has `config` and `items`;
            `items[item][leaf]` has `shape`, `dtype`, `sha256` and, for a part of a large leaf, `rows`.
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

    def config(self, component: str) -> dict[str, Any]:
        """The stored configuration of a component.

        Raises:
            CheckpointError: the checkpoint has no such component.
        """
        return self._component(component)["config"]

    def leaves(self, component: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Every stored piece as (item, leaf, specification), in the order it was written."""
        for item, leaves in self._component(component)["items"].items():
            for leaf, specification in leaves.items():
                yield item, leaf, specification

    def _component(self, component: str) -> dict[str, Any]:
        components = self.data["components"]
        if component not in components:
            raise CheckpointError(
                f"{self.directory}: has no {component!r} component, only {', '.join(sorted(components)) or 'none'};"
                f" convert again with its source"
            )
        return components[component]
