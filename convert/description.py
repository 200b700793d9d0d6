"""What the manifest says about a conversion apart from the leaves, and the plain files of a checkpoint."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.component import Component
from convert.prompt_template import find_prompt_template
from convert.sources import Sources, read_json
from convert.tokenizers import tokenizer_files
from qsjax.config import from_mapping, to_mapping
from qsjax.errors import InputError
from qsjax.settings import Settings
from qsjax.vae import Tiling
from qsjax.versions import CONVERSION, versions


def describe(
    sources: Sources, components: Mapping[str, Component]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest as far as it is known before any tensor is read, and the plain files by relative path.

    Raises:
        InputError: a tokenizer, the prompt template or the sampling settings are absent or not what they should be.
    """
    files: dict[str, bytes] = {}
    for component, folder in (("llama", sources.tokenizer), ("clip", sources.tokenizer_2)):
        if component in components and folder is not None:
            for name, content in tokenizer_files(folder).items():
                files[f"tokenizers/{component}/{name}"] = content
    data: dict[str, Any] = {
        "libraries": {name: known or "unknown" for name, known in versions(CONVERSION).items()},
        "components": {name: _component(part) for name, part in components.items()},
        "scheduler": {"shift": _shift(sources.scheduler)},
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }
    if sources.generation is not None:
        data["generation"] = _generation(sources.generation)
    if "vae" in components:
        # What is None is left to the device that decodes.
        data["tiling"] = {k: v for k, v in to_mapping(Tiling()).items() if v is not None}
    if "llama" in components:
        data["prompt"] = to_mapping(find_prompt_template(sources.prompt_template))
    return data, files


def _component(part: Component) -> dict[str, Any]:
    tensors = part.source.tensors
    used = [name for row in part.rows for name in row.sources]
    return {
        "config": to_mapping(part.config),
        "parameters": sum(int(np.prod(row.shape)) for row in part.rows),
        "bytes": sum(info.nbytes for row in part.rows for info in part.outputs(row).values()),
        **part.details(),
        "source": {
            "name": part.path.name,
            "container": part.source.container,
            "layout": part.layout.name,
            "prefix": part.layout.prefix,
            "tensors": len(tensors),
            "bytes": sum(path.stat().st_size for path in part.source.files),
            "used": len(used),
            "ignored": [*part.ignored, *part.source.ignored],
        },
    }


def _generation(path: Path) -> dict[str, Any]:
    values = read_json(path)
    from_mapping(Settings, values, source=str(path))
    return values


def _shift(folder: Path | None) -> float:
    path = None if folder is None else folder / "scheduler_config.json"
    values = read_json(path) if path is not None and path.is_file() else {}
    shift = values.get("shift", Settings.shift)
    if not isinstance(shift, int | float) or not shift > 0:
        raise InputError(f"{path}: shift should be a positive number, found {shift!r}")
    return float(shift)
