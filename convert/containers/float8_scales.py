"""The scales of float8 safetensors: which tensor is the scale of which layer, in three spellings, and what can be wrong with it.

LAYER.scale_weight, LAYER.scale_input    ComfyUI's first, announced by a tensor `scaled_fp8`
LAYER.weight_scale, LAYER.input_scale    ComfyUI's second, with `LAYER.comfy_quant` or a header that says the format
LAYER.fp8_scale                          Kijai's, announced by a tensor `fp8_scale`
"""

import numpy as np

from convert.containers.float8 import FLOAT8, SCALES
from convert.containers.source import Source, TensorInfo

WEIGHT_SCALES = (".scale_weight", ".weight_scale", ".fp8_scale")
INPUT_SCALES = (".scale_input", ".input_scale")


def with_suffix(source: Source, suffixes: tuple[str, ...]) -> dict[str, tuple[str, TensorInfo]]:
    """Layer -> the tensor of that layer with one of these suffixes, and what its weight is; layers without a weight are left."""
    found: dict[str, tuple[str, TensorInfo]] = {}
    for name in source.tensors:
        for suffix in suffixes:
            layer = name.removesuffix(suffix)
            if layer != name and (weight := source.tensors.get(f"{layer}.weight")) is not None:
                found[layer] = (name, weight)
    return found


def markers(source: Source) -> list[str]:
    """The tensors of at most two elements that announce scales; only their being there counts."""
    return [name for name, info in source.tensors.items() if is_marker(name) and info.nbytes <= 8]


def is_marker(name: str) -> bool:
    """Whether a tensor of this name announces scales."""
    return name == "fp8_scale" or name.split(".")[-1] == "scaled_fp8"


def misfit(layer: str, scale: TensorInfo, weight: TensorInfo) -> str | None:
    """What is wrong with a scale by its dtype and shape, in a few words."""
    channels = (weight.shape[0], *(1 for _ in weight.shape[1:])) if weight.shape else ()
    if scale.dtype.kind in "iub" or scale.dtype in FLOAT8:
        return f"the scale of {layer!r} is {scale.dtype}"
    if scale.shape not in ((), (1,), (1, 1), channels):
        return f"the scale of {layer!r} has the shape {list(scale.shape)}, its weight {list(weight.shape)}"
    return None


def wrong_values(layer: str, scale: np.ndarray, weight: TensorInfo) -> list[str]:
    """What is wrong with a scale (float32) by its values."""
    problems = []
    if weight.dtype not in FLOAT8 and not (scale == 1).all():
        problems.append(f"a scale for {layer!r}, whose weight is {weight.dtype}")
    wrong = [number for number in scale.reshape(-1).tolist() if number not in SCALES]
    return problems + [f"the scale of {layer!r} is {number}" for number in wrong[:1]]
