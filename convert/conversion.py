"""From PyTorch files, or a model of the hub, to a checkpoint: what `qsjax convert` does, as a function."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convert.description import preset_settings, require_preset
from convert.early import require_room_for
from convert.hub_files import HubFiles
from convert.lora.request import Lora, LoraLike, one_or_several, parse
from convert.origin import Origin
from convert.quantized import Quantization, require
from convert.report import as_text, describe
from convert.schedule import Room
from convert.sources import Sources
from convert.stream import convert as write_checkpoint
from convert.text_storage import require_text_storage
from convert.verification import Verified
from convert.verification import verify as verify_checkpoint
from qsjax.checkpoint import MANIFEST, Manifest

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion made; printed, it is the report.

    Attributes:
        checkpoint: its folder.
        manifest: of what was written; None where a checkpoint that was there was only verified.
        verified: what was compared; None where nothing was.
    """

    checkpoint: Path
    manifest: Manifest | None = None
    verified: Verified | None = None

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        report = {"checkpoint": str(self.checkpoint)} if self.manifest is None else describe(self.manifest)  # fmt: skip
        return report if self.verified is None else report | {"verified": self.verified._asdict()}

    def __str__(self) -> str:
        lines = [] if self.manifest is None else [as_text(describe(self.manifest))]
        if self.verified is not None:
            lines.append(
                f"verified: {self.verified.leaves} leaves ({self.verified.from_source} of them made again from the source) "
                f"and {self.verified.files} files are as written"
            )
        return "\n".join(lines)


def convert(
    source: PathLike | None,
    out: PathLike,
    *,
    transformer: PathLike | None = None,
    vae: PathLike | None = None,
    text_encoder: PathLike | None = None,
    text_encoder_2: PathLike | None = None,
    tokenizer: PathLike | None = None,
    tokenizer_2: PathLike | None = None,
    config: PathLike | None = None,
    vae_config: PathLike | None = None,
    prompt_template: PathLike | None = None,
    lora: LoraLike | Sequence[LoraLike] = (),
    dtype: Literal["bfloat16", "float32"] | None = None,
    quantize: str | None = None,
    text_storage: Literal["int8"] | None = None,
    preset: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
    offline: bool = False,
    delete_source: bool = False,
    progress: bool = True,
) -> Conversion:
    """Write a checkpoint from PyTorch weights. The same call after an interruption goes on where it stopped.

    >>> print(qsjax.convert("hf://hunyuanvideo-community/HunyuanVideo", "checkpoints/hunyuan", quantize="rtn-w4a8"))

    Args:
        source: a diffusers folder, a folder of Tencent's files or a transformer file; None takes the parts that are named.
            hf://OWNER/NAME[@REVISION][/PATH] is such a folder or file of the Hugging Face hub, here and for every other part:
            what is needed of it is downloaded. With `lora` also a checkpoint in full precision.
        out: checkpoint folder to write.
        transformer, vae: weights, a .safetensors or .pt file, or a folder, in place of the source's.
        text_encoder, text_encoder_2: LLaMA or LLaVA and CLIP, folders with config.json, or .safetensors files; without a config.json
            they are HunyuanVideo's if their shapes are.
        tokenizer, tokenizer_2: their folders; None is beside the text encoders.
        config, vae_config: sizes where weights carry none: a TOML preset or diffusers' config.json; None is HunyuanVideo's.
        prompt_template: JSON file {"template", "crop_start", "max_length"}; None is the source's, else HunyuanVideo's.
        lora: LoRA files to merge into the transformer, one or several: a path, "FILE:STRENGTH" or (FILE, STRENGTH). They are added in float32
            before anything is quantized.
        dtype: of all stored weights; None is the source's.
        quantize: METHOD-RECIPE stores the transformer quantized without calibration, as in "rtn-w4a8" or "quarot-w4a8".
        text_storage: "int8" stores the linear layers of the text encoders in 8 bits, which they then also have in memory.
        preset: how the model is sampled unless a call says otherwise, of `configs/generation`: "fast-hunyuan" for FastVideo's distilled
            transformer; None is the source's, else HunyuanVideo's.
        verify: re-read what was written and compare it with the source; if `out` is a checkpoint already, only that.
        overwrite: replace `out`, once the new one is whole.
        offline: of the hub, use what was downloaded and ask nobody.
        delete_source: of the hub, download one safetensors file at a time and delete it when its tensors are written, so that
            the disk need not hold all of both; `verify` then compares with checksums only.
        progress: show bars.

    Raises:
        InputError: a source is absent or unsuitable, or `out` cannot be written.
        CheckpointError: a source is damaged, or what was written is not what was meant.
    """
    parts = {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "config": config,
        "vae_config": vae_config,
        "prompt_template": prompt_template,
    }
    texts = {name: os.fspath(path) for name, path in parts.items() if path is not None}
    wanted = [parse(one) for one in one_or_several(lora)]
    # A word that is none is said before the hub is asked.
    for path, strength in wanted:
        Lora(Path(path), strength)
    if quantize is not None:
        Quantization.named(quantize)
    if preset is not None:
        preset_settings(preset)
    hub = HubFiles(offline=offline, deletes=delete_source)
    place = None if source is None else os.fspath(source)
    folder, named, paths, origin = Origin(hub).find(place, texts, [path for path, _ in wanted])
    loras = tuple(Lora(path, strength) for path, (_, strength) in zip(paths, wanted, strict=True))
    destination, manifest, sources = Path(out), None, None
    if verify and not overwrite and (destination / MANIFEST).is_file():
        if folder is not None or named or loras:
            sources = Sources.find(folder, loras, files=hub, **named)
        if quantize is not None:
            require(Manifest.read(destination), quantize)
        if text_storage is not None:
            require_text_storage(Manifest.read(destination), text_storage)
        if preset is not None:
            require_preset(Manifest.read(destination), preset)
    else:
        sources = Sources.find(folder, loras, files=hub, **named)
        manifest = write_checkpoint(
            sources,
            destination,
            dtype=dtype,
            quantize=quantize,
            text_storage=text_storage,
            preset=preset,
            origin=origin,
            overwrite=overwrite,
            progress=progress,
        )
    verified = None
    if verify:
        missing = 0 if delete_source else hub.all_missing()
        require_room_for(destination, Room(0, missing, missing))
        compared = None if delete_source else sources  # they are not here any more
        verified = verify_checkpoint(destination, compared, progress=progress)
    return Conversion(checkpoint=destination, manifest=manifest, verified=verified)
