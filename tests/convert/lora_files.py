"""LoRA files in every spelling, and the weights that they make by torch alone."""

import convert_models as models
import torch

RANK, ALPHA = 4, 6.0
LAYERS = (
    "img_in.proj", "time_in.mlp.0", "vector_in.in_layer", "txt_in.input_embedder", "txt_in.c_embedder.linear_1",
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv", "txt_in.individual_token_refiner.blocks.0.mlp.fc1",
    "double_blocks.0.img_mod.linear", "double_blocks.0.img_attn_qkv", "double_blocks.0.txt_attn_proj",
    "double_blocks.0.txt_mlp.fc2", "single_blocks.0.modulation.linear", "single_blocks.0.linear2", "single_blocks.1.linear1",
    "final_layer.linear", "final_layer.adaLN_modulation.1",
)  # fmt: skip
"""Tencent's names, one of each kind."""
_JOINED = {"self_attn_qkv": (32, 32, 32), "img_attn_qkv": (32, 32, 32), "linear1": (32, 32, 32, 128)}  # fmt: skip


def matrices(layer, rows=None, seed=0, base=None):
    """Down and up of a layer of the small transformer."""
    weight = (models.tencent(torch.float32) if base is None else base)[f"{layer}.weight"]
    generator = torch.Generator().manual_seed(seed)
    ones = (1,) * (weight.ndim - 2)
    down = torch.randn((RANK, *weight.shape[1:]), generator=generator)
    up = torch.randn((weight.shape[0] if rows is None else rows, RANK, *ones), generator=generator)
    return down, up


def product(down, up):
    """up @ down as torch computes it, for convolutions too."""
    flat = up.reshape(len(up), -1).float() @ down.reshape(len(down), -1).float()
    return flat.reshape(len(up), *down.shape[1:])


def in_tencents_names(spelling, strength=1.0, layers=LAYERS):
    """A file with Tencent's or ComfyUI's names, and the change of every weight by Tencent's names."""
    tensors, changes = {}, {}
    alpha = ALPHA if spelling in ("kohya", "kohya split", "i2v", "alpha") else RANK
    for seed, layer in enumerate(layers):
        joined = _JOINED.get(layer.split(".")[-1])
        if spelling == "kohya split" and joined:
            name, total = f"lora_unet_{layer.replace('.', '_')}", []
            for k, rows in enumerate(joined):
                down, up = matrices(layer, rows, seed=100 * seed + k)
                tensors |= {f"{name}.lora_down.{k}.weight": down, f"{name}.lora_up.{k}.weight": up}
                total.append(product(down, up))
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
            changes[f"{layer}.weight"] = strength * ALPHA / RANK * torch.cat(total)
            continue
        down, up = matrices(layer, seed=seed)
        changes[f"{layer}.weight"] = strength * alpha / RANK * product(down, up)
        if spelling in ("kohya", "kohya split", "i2v"):
            prefix = "Hunyuan_video_I2V_lora_" if spelling == "i2v" else "lora_unet_"
            name = prefix + layer.replace(".", "_")
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA, dtype=torch.bfloat16)
            continue
        prefix = {"comfy": "diffusion_model.", "alpha": "diffusion_model.", "bare": ""}.get(spelling, f"{spelling}.")  # fmt: skip
        # ComfyUI's second layout names modules otherwise; its renaming knows the names of weights.
        layer = models.comfy_name(layer + ".weight").removesuffix(".weight") if spelling == "comfy" else layer  # fmt: skip
        tensors |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
        if spelling == "alpha":
            tensors[f"{prefix}{layer}.alpha"] = torch.tensor([ALPHA])
    return tensors, changes


def in_diffusers_names(base, strength=1.0, prefix="transformer.", alpha=None):
    """A file for every linear layer of a diffusers state dict, and the change of every weight by diffusers' names."""
    tensors, changes = {}, {}
    for seed, name in enumerate(name for name, tensor in base.items() if tensor.ndim > 1):
        layer = name.removesuffix(".weight")
        down, up = matrices(layer, seed=seed, base=base)
        tensors |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
        factor = strength * (1 if alpha is None else alpha / RANK)
        changes[name] = factor * product(down, up)
    return tensors, changes


def added(base, changes):
    """The weights with changes added, in float32."""
    return {
        name: tensor.float() + changes[name] if name in changes else tensor.float()
        for name, tensor in base.items()
    }
