"""Float8 safetensors in every spelling, made and read back by torch alone."""

import json

import torch

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SPELLINGS = ("plain", "plain e5m2", "scale_weight", "comfy_quant", "metadata", "fp8_scale", "channels")  # fmt: skip


def as_float8(tensors, spelling):
    """The tensors of a file, its metadata, and the weights that they stand for in float32.

    Linear weights inside blocks and layers become float8; of plain files everything does, and nothing with "no float8".
    """
    stored, expected, layers, metadata = {}, {}, {}, {}
    for name, tensor in tensors.items():
        layer, plain = name.removesuffix(".weight"), spelling.startswith("plain")
        if spelling == "no float8" or (not plain and not (layer != name and tensor.ndim == 2 and ("blocks." in name or "layers." in name))):  # fmt: skip
            stored[name], expected[name] = tensor, tensor.float()
            continue
        if plain:
            stored[name] = tensor.to(E5M2 if spelling == "plain e5m2" else E4M3)
            expected[name] = stored[name].float()
            continue
        scale = tensor.float().abs().max() / 448
        if spelling == "channels":
            scale = tensor.float().abs().amax(1, keepdim=True) / 448
        stored[name] = (tensor.float() / scale).clamp(-448, 448).to(E4M3)
        expected[name] = stored[name].float() * scale
        layers[layer] = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
        if spelling in ("scale_weight", "channels"):
            stored[f"{layer}.scale_weight"], stored["scaled_fp8"] = scale, torch.zeros(2).to(E4M3)
            stored[f"{layer}.scale_input"] = torch.tensor(1.0)
        elif spelling == "fp8_scale":
            stored[f"{layer}.fp8_scale"], stored["fp8_scale"] = scale, torch.zeros(1)
        else:
            stored[f"{layer}.weight_scale"] = scale
            stored[f"{layer}.input_scale"] = torch.tensor(0.5)
            if spelling == "comfy_quant":
                stored[f"{layer}.comfy_quant"] = as_bytes(layers[layer])
    if spelling == "metadata":
        content = {"format_version": "1.0", "layers": layers}
        metadata["_quantization_metadata"] = json.dumps(content)
    return stored, metadata, expected


def as_bytes(settings):
    """JSON as a tensor, as ComfyUI has it beside a layer."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
