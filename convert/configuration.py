"""A component's sizes: from the file the user names, from the one beside the weights, or the published model's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint_source import CheckpointSource
from convert.containers import GgufFile, Source
from convert.gguf_llama import gguf_llama, require_same
from convert.keymaps.detect import TITLES, ComponentConfig
from convert.known_text_encoders import PRESET, known_text_encoder
from convert.sources import read_json
from qsjax.config import from_mapping, load_toml, to_mapping
from qsjax.dit.config import DiTConfig
from qsjax.errors import InputError
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.vae.config import VAEConfig

_KINDS: Mapping[str, type[ComponentConfig]] = {
    "dit": DiTConfig,
    "vae": VAEConfig,
    "llama": LlamaConfig,
    "clip": ClipConfig,
}
_TENCENT_VAE = "AutoencoderKLCausal3D"
# What Tencent's class assumes for keys that its config.json leaves out, under diffusers' names.
_TENCENT_VAE_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 4,
    "mid_block_add_attention": True,
}


def configuration(
    component: str, path: Path, source: Source, named: Path | None
) -> tuple[ComponentConfig, str]:
    """The config of a component and where it comes from.

    Args:
        component: "dit", "vae", "llama" or "clip".
        path: where the weights are, for messages.
        source: the open weights.
        named: TOML preset or config.json that the user names.

    Raises:
        InputError: no configuration is there, or it does not describe this model.
        CheckpointError: a GGUF file's metadata contradict it.
    """
    if named is not None:
        return _read(component, named), named.name
    if isinstance(source, CheckpointSource):
        return source.component_config, "its manifest"
    if source.config is not None:
        config = _from_json(component, source.config, str(path))
        if isinstance(source, GgufFile):
            require_same(source, config)
        return config, "config.json"
    if component == "dit":
        # Tencent's model without guidance distillation differs from the preset in nothing else.
        distilled = any("guidance" in tensor for tensor in source.tensors)
        values = to_mapping(DiTConfig.preset(PRESET)) | {"guidance_embeds": distilled}
        return from_mapping(DiTConfig, values, source=PRESET), f"preset {PRESET}"
    if component == "vae":
        return VAEConfig(), "HunyuanVideo's"
    if component == "llama" and isinstance(source, GgufFile):
        told = gguf_llama(source)
        if told is not None:
            return told, "its metadata"
    found = known_text_encoder(component, source.tensors)
    if found is None:
        raise InputError(
            f"{path}: has no config.json beside the weights of the {TITLES[component]}, and its tensors are not those of "
            f"HunyuanVideo's; put the config.json there that belongs to it"
        )
    return found, "HunyuanVideo's"


def _read(component: str, path: Path) -> ComponentConfig:
    if path.suffix != ".toml":
        return _from_json(component, read_json(path), str(path))
    values = load_toml(path)
    if component not in values:
        raise InputError(f"{path}: has no [{component}] table; give a model preset or config.json")
    return from_mapping(_KINDS[component], values[component], source=str(path))


def _from_json(component: str, values: Mapping[str, Any], source: str) -> ComponentConfig:
    readers: dict[str, Callable[[Mapping[str, Any]], ComponentConfig]] = {
        "dit": DiTConfig.from_diffusers,
        "vae": VAEConfig.from_diffusers,
        "llama": LlamaConfig.from_transformers,
        "clip": ClipConfig.from_transformers,
    }
    if component == "vae" and values.get("_class_name") == _TENCENT_VAE:
        values = _from_tencent_vae(values)
    try:
        return readers[component](values)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _from_tencent_vae(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tencent's config.json with diffusers' names; its tile sizes are those of qsjax anyway."""
    renamed = {"temporal_compression_ratio": values.get("time_compression_ratio", 4), **values}
    return {key: renamed.get(key, default) for key, default in _TENCENT_VAE_DEFAULTS.items()}
