"""Which files feed which component."""

import os
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from convert.containers.files import ON_DISK, Files
from convert.containers.folder import weights_in
from convert.containers.listing import first_few
from convert.lora.request import Lora
from qsjax.checkpoint import MANIFEST, Manifest
from qsjax.errors import InputError
from qsjax.settings.video import FILE
from qsjax.untrusted import read_object, shown
from qsjax.untrusted.files import SMALL, shown_path

PARTS = {"transformer": "dit", "vae": "vae", "text_encoder": "llama", "text_encoder_2": "clip"}
"""The field of `Sources` (and folder of a diffusers pipeline) of each component."""

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""The tokenizer of each text encoder."""

TEMPLATE_FILE = "prompt_template.json"
"""A prompt template beside model_index.json; diffusers has no place for one."""

_TENCENT = {
    "transformer": "transformers/mp_rank_00_model_states.pt",
    "vae": "vae/pytorch_model.pt",
}
_CLASSES = {
    "HunyuanVideoTransformer3DModel": "transformer",
    "AutoencoderKLHunyuanVideo": "vae",
}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The PyTorch files of one conversion; a component without a source is not converted.

    Attributes:
        transformer: DiT weights, a file or a folder.
        vae: VAE weights, a file or a folder.
        text_encoder: LLaMA (or LLaVA), a folder with config.json or a file; without one it is HunyuanVideo's if its shapes are.
        text_encoder_2: CLIP, the same.
        tokenizer: folder of LLaMA's tokenizer.
        tokenizer_2: folder of CLIP's tokenizer.
        scheduler: folder with scheduler_config.json, for the shift.
        config: sizes of the DiT, where its weights carry none: TOML preset or diffusers config.json.
        vae_config: config.json of the VAE, where its weights carry none.
        prompt_template: JSON file with template, crop_start and max_length.
        generation: JSON file with the model's sampling settings (`qsjax.settings.Settings`).
        checkpoint: one of ours; the parts that name it are read from it, and so are settings that no file says.
        lora: LoRA files to merge into the transformer.
        files: where files of weights are: on the disk, or also on the hub.
    """

    transformer: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    text_encoder_2: Path | None = None
    tokenizer: Path | None = None
    tokenizer_2: Path | None = None
    scheduler: Path | None = None
    config: Path | None = None
    vae_config: Path | None = None
    prompt_template: Path | None = None
    generation: Path | None = None
    checkpoint: Path | None = None
    lora: tuple[Lora, ...] | None = None
    files: Files = field(default=ON_DISK, compare=False)

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.name not in ("files", "lora")):
            path = getattr(self, name)
            # A name that is too long for the file system is none; `Path.exists` would raise.
            if path is not None and not (os.path.exists(path) or self.files.is_there(path)):
                raise InputError(
                    f"{shown_path(path)}: does not exist; give an existing path for {name.replace('_', ' ')}"
                )
        if not any(getattr(self, part) for part in PARTS):
            raise InputError(
                "nothing to convert; give a diffusers folder, a transformer file, or one of "
                "`transformer`, `vae`, `text_encoder`, `text_encoder_2`"
            )
        for lora in self.lora or ():
            if not (os.path.exists(lora.path) or self.files.is_there(lora.path)):
                raise InputError(
                    f"{shown_path(lora.path)}: does not exist; give an existing file for `lora`"
                )
        if self.lora and self.transformer is None:
            raise InputError(
                "`lora` is for the transformer, and none is to be converted; name one with `transformer`"
            )
        for config, part in (("config", "transformer"), ("vae_config", "vae")):
            if getattr(self, config) is not None and getattr(self, part) is None:
                raise InputError(
                    f"{getattr(self, config)}: describes a {part}, and none is to be converted; name it or leave this out"
                )
        for part, tokenizer in TOKENIZERS.items():
            if getattr(self, part) is not None and getattr(self, tokenizer) is None:
                raise InputError(
                    f"{getattr(self, part)}: has no tokenizer beside it; name its folder with "
                    f"`{tokenizer}`"
                )

    @classmethod
    def find(
        cls,
        source: Path | None = None,
        lora: tuple[Lora, ...] = (),
        /,
        *,
        files: Files = ON_DISK,
        **given: Path | None,
    ) -> "Sources":
        """The sources inside `source`, with those named in `given` taking precedence.

        Args:
            source: a diffusers folder (model_index.json), a folder as Tencent publishes it (transformers/, vae/),
                one component's folder, or a transformer file. None takes `given` alone. With `lora` also a checkpoint of ours.
            lora: LoRA files to merge into the transformer.
            files: where files of weights are.
            given: fields of `Sources`; what lies beside a text encoder's file is its tokenizer, too.

        Raises:
            InputError: `source` does not exist or is none of these, or a part it announces is absent.
        """
        named: dict[str, Any] = {name: path for name, path in given.items() if path is not None}
        if source is not None and lora and os.path.isfile(source / MANIFEST):
            parts = checkpoint_parts(source)
        else:
            parts = {} if source is None else _look_into(source, frozenset(named))
        merged: dict[str, Any] = {**parts, **named, "lora": lora}
        for part, tokenizer in TOKENIZERS.items():
            place = merged.get(part)
            if tokenizer in merged or place is None:
                continue
            folder = place if os.path.isdir(place) else place.parent
            if has_tokenizer(folder):
                merged[tokenizer] = folder
        return cls(**merged, files=files)

    def without(self, parts: Collection[str]) -> "Sources":
        """The others, at least one, as they are before LoRAs are merged."""
        configs = {"config": "transformer", "vae_config": "vae"}
        kept = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in {*parts, "lora"} and configs.get(each.name) not in parts
        }
        return Sources(**kept)

    def components(self) -> dict[str, Path]:
        """Component -> where its weights are, in the order in which they are converted."""
        return {
            component: getattr(self, part)
            for part, component in PARTS.items()
            if getattr(self, part) is not None
        }


def checkpoint_parts(checkpoint: Path) -> dict[str, Path]:
    """The fields of `Sources` that a checkpoint of ours fills.

    Raises:
        CheckpointError: it cannot be read.
    """
    components = Manifest.read(checkpoint).components
    parts = {part: checkpoint for part, component in PARTS.items() if component in components}
    for part, tokenizer in TOKENIZERS.items():
        folder = checkpoint / "tokenizers" / PARTS[part]
        if part in parts and folder.is_dir():
            parts[tokenizer] = folder
    return {**parts, "checkpoint": checkpoint}


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that can be converted."""
    return any(os.path.exists(folder / name) for name in ("tokenizer.json", "merges.txt"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file: a configuration, an index of a pipeline, a template.

    Raises:
        InputError: the file cannot be read, or has more than a megabyte.
        CheckpointError: it is not a JSON object with finite numbers.
    """
    return read_object(path, SMALL)


class Folder:
    """A folder of a model, of which it matters what is there.

    Args:
        path: where it is, for messages and to join names to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, name: str) -> bool:
        """Whether something of that name is there."""
        return (self.path / name).exists()  # what is there and no file is refused when it is read

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder."""
        return (self.path / name).is_dir()

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file; see `read_json`."""
        return read_json(self.path / name)

    def weights(self) -> list[str]:
        """The files of weights, as far as they are in sight."""
        return weights_in(path.name for path in self.path.glob("*") if path.is_file())

    def __str__(self) -> str:
        return str(self.path)


def parts_of(folder: Folder, named: frozenset[str]) -> dict[str, Path]:
    """The parts of a model in its folder: fields of `Sources`.

    Args:
        folder: as diffusers or Tencent publish a model, or of one component.
        named: parts that are named otherwise, and need not be there.

    Raises:
        InputError: it is none of these, or a part that it announces is absent.
    """
    if folder.has("model_index.json"):
        return _diffusers(folder, named)
    if folder.has("manifest.json"):
        raise InputError(
            f"{folder}: is a converted checkpoint already; write PyTorch files from it with `export`, or merge a `lora` into it on this disk"
        )
    tencent = {part: folder.path / file for part, file in _TENCENT.items() if folder.has(file)}
    if tencent:
        return tencent | {
            part: folder.path / part for part in TOKENIZERS if folder.has_folder(part)
        }
    if folder.has("config.json"):
        name = folder.read("config.json").get("_class_name")
        if isinstance(name, str) and name in _CLASSES:
            return {_CLASSES[name]: folder.path}
    if weights := folder.weights():
        raise InputError(
            f"{folder}: does not say what its weights are of ({first_few(weights)}); name the file of the transformer "
            f"as the source, or the parts with `transformer`, `vae`, `text_encoder`, `text_encoder_2`"
        )
    raise InputError(
        f"{folder}: is not a diffusers folder (it has no model_index.json) nor one of Tencent's (no transformers/); "
        f"name the parts with `transformer`, `vae`, `text_encoder`, `text_encoder_2`"
    )


def _look_into(source: Path, named: frozenset[str]) -> dict[str, Path]:
    if os.path.isfile(source):
        return {"transformer": source}
    if not os.path.isdir(source):
        fault = "is a pipe or a device" if os.path.exists(source) else "does not exist"
        raise InputError(
            f"{shown_path(source)}: {fault}; give a diffusers folder, a folder of Tencent's files or a transformer file"
        )
    return parts_of(Folder(source), named)


def _diffusers(folder: Folder, named: frozenset[str]) -> dict[str, Path]:
    index = folder.read("model_index.json")
    if index.get("_class_name", "HunyuanVideoPipeline") != "HunyuanVideoPipeline":
        raise InputError(
            f"{folder}: holds a {shown(index['_class_name'])}, only HunyuanVideoPipeline (text to video) is supported"
        )
    parts: dict[str, Path] = {}
    for part in (*PARTS, "tokenizer", "tokenizer_2", "scheduler"):
        announced = isinstance(index.get(part), list) and all(index[part])
        if folder.has_folder(part):
            parts[part] = folder.path / part
        elif announced and part not in named:
            raise InputError(
                f"{folder}: model_index.json names {part}, but the folder is absent; download it, "
                f"or name the parts you have (`transformer`, `vae`, ...) without the folder"
            )
    beside = {"prompt_template": TEMPLATE_FILE, "generation": FILE}
    return parts | {name: folder.path / file for name, file in beside.items() if folder.has(file)}
