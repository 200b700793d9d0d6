"""What the manifest says about a conversion apart from the leaves, and the plain files of a checkpoint."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convert.component import Component
from convert.containers.files import Files
from convert.prompt_template import find_prompt_template
from convert.sources import Sources, read_json
from convert.tokenizers import tokenizer_files
from qsjax.checkpoint import Manifest
from qsjax.config import from_mapping, to_mapping
from qsjax.config import preset as preset_of
from qsjax.dit.config import DiTConfig
from qsjax.errors import InputError
from qsjax.settings import Settings
from qsjax.settings.video import check_size
from qsjax.untrusted import shown
from qsjax.vae import Tiling
from qsjax.vae.config import VAEConfig
from qsjax.versions import CONVERSION, versions


def describe(
    sources: Sources, components: Mapping[str, Component], preset: str | None = None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest as far as it is known before any tensor is read, and the plain files by relative path.

    Args:
        sources: the PyTorch files.
        components: what is converted.
        preset: sampling settings of `configs/generation`, which win over the sources' own.

    Raises:
        InputError: no such preset; a tokenizer, the prompt template or the sampling settings are absent or not what they should be.
    """
    files: dict[str, bytes] = {}
    for component, folder in (("llama", sources.tokenizer), ("clip", sources.tokenizer_2)):
        if component in components and folder is not None:
            vocabulary = to_mapping(components[component].config)["vocab_size"]
            for name, content in tokenizer_files(folder, vocabulary=vocabulary).items():
                files[f"tokenizers/{component}/{name}"] = content
    base = None if sources.checkpoint is None else Manifest.read(sources.checkpoint)
    data: dict[str, Any] = {
        "libraries": {name: known or "unknown" for name, known in versions(CONVERSION).items()},
        "components": {name: _component(part, sources.files) for name, part in components.items()},
        "scheduler": {"shift": _shift(sources.scheduler)}
        if base is None
        else dict(base.data.get("scheduler", {})),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }
    if generation := _generation(sources.generation, base, preset, components):
        data["generation"] = generation
    if "vae" in components:
        # What is None is left to the device that decodes.
        data["tiling"] = {k: v for k, v in to_mapping(Tiling()).items() if v is not None}
    if "llama" in components:
        known = None if base is None or sources.prompt_template is not None else base.prompt
        data["prompt"] = known or to_mapping(find_prompt_template(sources.prompt_template))
    return data, files


def _component(part: Component, files: Files) -> dict[str, Any]:
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
            "bytes": sum(map(files.size, part.source.files)),
            "used": len(used),
            "ignored": [*part.ignored, *part.source.ignored],
            **({"lora": list(part.source.lora)} if part.source.lora else {}),
        },
    }


def _generation(
    path: Path | None,
    base: Manifest | None,
    preset: str | None,
    components: Mapping[str, Component],
) -> dict[str, Any]:
    """The model's sampling settings, of a file or of the checkpoint that is converted; those of a preset win over them.

    Their video is one that the model can make.
    """
    if path is None and preset is None:
        return {} if base is None else dict(base.data.get("generation", {}))
    if preset is not None and "dit" not in components:
        raise InputError(
            f"`preset={preset!r}` says how a transformer is sampled, and none is to be converted; leave it out"
        )
    values, place = ({} if base is None else dict(base.data.get("generation", {}))), path
    if path is not None:
        values = read_json(path)
        _settings(values, path)
    if preset is not None:
        values, place = values | preset_settings(preset), Path(preset)
    settings = _settings(values, place)
    dit, vae = (components[name].config if name in components else None for name in ("dit", "vae"))
    if isinstance(dit, DiTConfig) and isinstance(vae, VAEConfig):
        with _in(place):
            check_size(
                settings.frames,
                settings.height,
                settings.width,
                temporal=vae.temporal_compression_ratio * dit.patch_size[0],
                spatial=vae.spatial_compression_ratio * dit.patch_size[1],
            )
    return values


def preset_settings(name: str) -> dict[str, Any]:
    """The sampling settings of a preset: fields of `qsjax.settings.Settings`.

    Raises:
        InputError: no such preset.
    """
    return preset_of("generation", name)


def require_preset(manifest: Manifest, name: str) -> None:
    """Check that a checkpoint has the sampling settings of a preset.

    Raises:
        InputError: no such preset, or other settings.
    """
    stored = manifest.generation
    for key, value in preset_settings(name).items():
        if stored.get(key) != value:
            raise InputError(
                f"{manifest.directory}: has {key} {shown(stored.get(key))}, and `preset={name!r}` {value}; convert again with it"
            )


def _settings(values: Mapping[str, Any], path: Path | None) -> Settings:
    with _in(path):
        return from_mapping(Settings, values, source="settings")


@contextmanager
def _in(path: Path | None) -> Iterator[None]:
    """Say in which file a value is that is refused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _shift(folder: Path | None) -> float:
    path = None if folder is None else folder / "scheduler_config.json"
    values = read_json(path) if path is not None and path.exists() else {}
    shift = values.get("shift", Settings.shift)
    return _settings({"shift": shift}, path).shift
