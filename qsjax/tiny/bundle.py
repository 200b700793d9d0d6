"""Writing the tiny model as a PyTorch pipeline folder, the input of the converter and of diffusers alike."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.containers import TensorInfo, write_safetensors
from convert.keymaps import expand
from qsjax.checkpoint import write_atomically
from qsjax.dit import DiT
from qsjax.errors import InputError
from qsjax.params import find_parameter, parameters
from qsjax.settings import Settings
from qsjax.settings.video import FILE
from qsjax.text import Clip, Llama
from qsjax.tiny import encoders, words
from qsjax.tiny.configs import CLIP_CONFIG, DEFAULTS, LLAMA_CONFIG
from qsjax.vae import VAE

LIMIT_BYTES = 12_000_000
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_CLASSES = {
    "text_encoder": ("transformers", "LlamaModel"),
    "text_encoder_2": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "tokenizer_2": ("transformers", "PreTrainedTokenizerFast"),
    "transformer": ("diffusers", "HunyuanVideoTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLHunyuanVideo"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}


def assets_directory() -> Path:
    """Where the bundle lies in the installed package."""
    return Path(__file__).resolve().parent.parent / "assets" / "tiny"


def write_bundle(
    destination: Path,
    dit: DiT,
    vae: VAE,
    *,
    scaling_factor: float,
    defaults: Settings = DEFAULTS,
) -> int:
    """Write the whole folder; what was there is replaced file by file.

    Weights of the transformer and the VAE are rounded to bfloat16, the text encoders stay float32.

    Args:
        destination: the folder.
        dit: the transformer.
        vae: the autoencoder.
        scaling_factor: latents of the DiT = latents of the VAE times this.
        defaults: sampling settings to store.

    Returns:
        Size of the folder in bytes.

    Raises:
        InputError: the folder would be larger than 12 MB.
    """
    destination.mkdir(parents=True, exist_ok=True)
    vae_config = {**vae.config.to_diffusers(), "scaling_factor": scaling_factor}
    _write_json(destination / "transformer/config.json", dit.config.to_diffusers())
    _write_weights(
        destination / "transformer" / _WEIGHTS, _tensors("dit", "diffusers", dit, _BFLOAT16)
    )
    _write_json(destination / "vae/config.json", vae_config)
    _write_weights(destination / "vae" / _WEIGHTS, _tensors("vae", "hunyuan", vae, _BFLOAT16))
    _write_text(destination)
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": defaults.shift,
        "use_dynamic_shifting": False,
    }
    _write_json(destination / "scheduler/scheduler_config.json", scheduler)
    _write_json(destination / "prompt_template.json", words.PROMPT_TEMPLATE)
    _write_json(destination / FILE, asdict(defaults))
    index = {"_class_name": "HunyuanVideoPipeline", **{k: list(v) for k, v in _CLASSES.items()}}
    _write_json(destination / "model_index.json", index)
    size = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    if size > LIMIT_BYTES:
        shutil.rmtree(destination)
        raise InputError(f"{destination}: the bundle has {size} bytes, allowed are {LIMIT_BYTES}")
    return size


def _tensors(
    component: str, layout: str, module: DiT | VAE | Llama | Clip, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """PyTorch names -> tensors of one component."""
    arrays = {name: np.asarray(value) for name, value in parameters(module).items()}
    tensors: dict[str, np.ndarray] = {}
    for row in expand(component, module.config, layout):
        tensors.update(row.to_torch(_leaf(arrays, row.leaf)))
    return {name: value.astype(dtype) for name, value in tensors.items()}


def _leaf(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    place = find_parameter(name, arrays)
    if place is None:
        raise InputError(f"the module has no parameter for {name}")
    stack, row = place
    return arrays[stack] if row is None else arrays[stack][row]


def _write_text(destination: Path) -> None:
    single = np.dtype(np.float32)
    llama = _tensors("llama", "transformers", encoders.llama(), single)
    _add_unused_layers(llama)
    _write_weights(destination / "text_encoder/model.safetensors", llama)
    _write_json(destination / "text_encoder/config.json", LLAMA_CONFIG.to_transformers())
    clip = _tensors("clip", "transformers", encoders.clip(), single)
    _write_weights(destination / "text_encoder_2/model.safetensors", clip)
    _write_json(destination / "text_encoder_2/config.json", CLIP_CONFIG.to_transformers())
    for folder, kind in (("tokenizer", "llama"), ("tokenizer_2", "clip")):
        for name, text in words.tokenizer_files(kind).items():
            path = destination / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())


def _add_unused_layers(tensors: dict[str, np.ndarray]) -> None:
    """The two layers above the text states, and the last norm: a whole LlamaModel has them, but they are not used."""
    first = {name: value for name, value in tensors.items() if name.startswith("layers.0.")}
    for layer in range(LLAMA_CONFIG.num_used_layers, LLAMA_CONFIG.num_hidden_layers):
        for name, value in first.items():
            norm = name.endswith("layernorm.weight")
            filler = np.ones_like(value) if norm else np.zeros_like(value)
            tensors[name.replace("layers.0.", f"layers.{layer}.")] = filler
    tensors["norm.weight"] = np.ones(LLAMA_CONFIG.hidden_size, np.float32)


def _write_weights(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    infos = {name: TensorInfo(value.shape, value.dtype) for name, value in tensors.items()}
    write_safetensors(path, infos, tensors.__getitem__)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())
