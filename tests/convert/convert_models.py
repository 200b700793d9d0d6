"""Small PyTorch weights in every layout, made without the key tables under test."""

import dataclasses
import inspect
import json
import re
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.torch
import torch

from convert.keymaps import expand
from qsjax.dit.config import DiTConfig
from qsjax.vae.config import VAEConfig

DIT = DiTConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=32,
    num_heads=2,
    num_double_blocks=1,
    num_single_blocks=2,
    num_refiner_blocks=1,
    mlp_ratio=4.0,
    patch_size=(1, 2, 2),
    rope_axes_dim=(4, 6, 6),
    rope_theta=256.0,
    text_dim=12,
    pooled_dim=8,
    guidance_embeds=True,
)
VAE = VAEConfig(
    block_out_channels=(4, 4, 8),
    layers_per_block=1,
    norm_num_groups=2,
    latent_channels=4,
    spatial_compression_ratio=4,
)

# HunyuanVideo's own names -> ComfyUI's second layout, as its loader spells them.
_COMFY = (
    (r"(txt_in\.t_embedder|time_in|guidance_in)\.mlp\.0", r"\1.in_layer"),
    (r"(txt_in\.t_embedder|time_in|guidance_in)\.mlp\.2", r"\1.out_layer"),
    (r"txt_in\.c_embedder\.linear_1", "txt_in.c_embedder.in_layer"),
    (r"txt_in\.c_embedder\.linear_2", "txt_in.c_embedder.out_layer"),
    (r"_mod\.linear", "_mod.lin"),
    (r"\.modulation\.linear", ".modulation.lin"),
    (r"_attn_q_norm\.weight", "_attn.norm.query_norm.scale"),
    (r"_attn_k_norm\.weight", "_attn.norm.key_norm.scale"),
    (r"\.q_norm\.weight", ".norm.query_norm.scale"),
    (r"\.k_norm\.weight", ".norm.key_norm.scale"),
    (r"_attn_qkv", "_attn.qkv"),
    (r"_attn_proj", "_attn.proj"),
    (r"mlp\.fc1", "mlp.0"),
    (r"mlp\.fc2", "mlp.2"),
)


def random_tensors(component, config, layout, *, prefix=None, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for row in expand(component, config, layout, prefix)
        for name, shape in row.sources.items()
    }


@cache
def tencent(dtype=torch.bfloat16):
    return random_tensors("dit", DIT, "tencent", dtype=dtype)


@cache
def diffusers(dtype=torch.bfloat16):
    return by_diffusers(tencent(dtype), DIT.hidden_size)


@cache
def comfy():
    return {f"model.model.{comfy_name(name)}": tensor for name, tensor in tencent().items()}


def comfy_name(name):
    for pattern, replacement in _COMFY:
        name = re.sub(pattern, replacement, name)
    return name


def by_diffusers(state_dict, hidden_size):
    """diffusers' own renaming of Tencent's names, with its hard-coded width replaced."""
    from diffusers.loaders import single_file_utils

    source = inspect.getsource(single_file_utils.convert_hunyuan_video_transformer_to_diffusers)
    assert source.count("hidden_size = 3072") == 1
    scope = {"torch": torch}
    exec(source.replace("hidden_size = 3072", f"hidden_size = {hidden_size}"), scope)
    return scope["convert_hunyuan_video_transformer_to_diffusers"](dict(state_dict))


def save(path: Path, tensors):
    """Write one safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def save_dit(folder: Path, tensors=None, config=DIT):
    """A diffusers transformer folder."""
    save(folder / "diffusion_pytorch_model.safetensors", tensors or diffusers())
    (folder / "config.json").write_text(json.dumps(config.to_diffusers()))
    return folder


def config_file(folder: Path, config=DIT, component="dit"):
    """The sizes as a TOML preset."""
    path = folder / f"{component}.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in dataclasses.asdict(config).items()]
    path.write_text(f"[{component}]\n" + "\n".join(lines))
    return path


def digests(manifest, component="dit"):
    """Leaf -> what is stored."""
    return {
        leaf: (tuple(spec["shape"]), spec["dtype"], spec["sha256"])
        for _, leaf, spec in manifest.leaves(component)
    }


def numpy_of(tensors):
    """torch -> numpy, bfloat16 too."""
    return {
        name: (
            tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
            if tensor.dtype == torch.bfloat16
            else np.asarray(tensor)
        )
        for name, tensor in tensors.items()
    }
