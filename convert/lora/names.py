"""How files spell the parts of a LoRA: the layer, and whether a tensor is its up, its down or its alpha.

transformer.LAYER.lora_A.weight              diffusers, PEFT, diffusion-pipe; LAYER.lora_B.weight is up
diffusion_model.LAYER.lora_A.weight          ComfyUI
lora_unet_LAYER.lora_down.weight / .alpha    kohya, musubi-tuner: LAYER with "_" for "."
lora_unet_LAYER.lora_down.0.weight           the same, split: a LoRA for each of the parts that a layer joins
Hunyuan_video_I2V_lora_LAYER.lora_down       Tencent
"""

import re
from typing import NamedTuple

_DOTTED = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_", "Hunyuan_video_I2V_lora_")
_TEXT = ("lora_te", "text_encoder", "lora_text_encoder", "clip_l.", "llama.")
_PARTS = {
    **dict.fromkeys(("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight"), "down"),
    **dict.fromkeys(("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight"), "up"),
    "alpha": "alpha",
}  # fmt: skip
_SPLIT = re.compile(r"(.+)\.lora_(down|up)\.(\d)\.weight")
_OTHER_KINDS = {
    "DoRA": r"\.dora_scale$|lora_magnitude_vector",
    "LoHa": r"\.hada_[wt]",
    "LoKr": r"\.lokr_[wt]",
    "OFT": r"\.oft_|\.boft_",
    "GLoRA": r"\.[ab][12]\.weight$",
    "a Tucker decomposition (lora_mid)": r"\.lora_mid\.",
    "a LoRA of an embedding": r"lora_embedding_",
    "a LoRA with biases": r"\.lora_(A|B|up|down)(\.default)?\.bias$",
    "a difference of whole tensors (.diff)": r"\.(diff|diff_b|diff_m|set_weight|w_norm|b_norm)$",
}


class Key(NamedTuple):
    """A tensor's name, taken apart.

    Attributes:
        layer: its layer as the file has it, without the prefix.
        underscored: whether the layer has "_" for ".".
        part: "up", "down" or "alpha".
        number: which of the split parts; None where it is whole.
    """

    layer: str
    underscored: bool
    part: str
    number: int | None = None


def other_kind(name: str) -> str | None:
    """What a tensor is of that is not merged here ("DoRA"), by its name; None if that says nothing."""
    if name.startswith(_TEXT):
        return "a LoRA of a text encoder"
    found = (kind for kind, pattern in _OTHER_KINDS.items() if re.search(pattern, name))
    return next(found, None)


def parse_key(name: str) -> Key | None:
    """The parts of a tensor's name; None if it is not spelled as those of a LoRA."""
    if (split := _SPLIT.fullmatch(name)) is not None:
        layer, part, number = split[1], split[2], int(split[3])
        return Key(*_layer(layer), part, number)
    for suffix, part in _PARTS.items():
        if name.endswith(f".{suffix}"):
            return Key(*_layer(name.removesuffix(f".{suffix}")), part)
    return None


def _layer(name: str) -> tuple[str, bool]:
    """The layer without its prefix, and whether the prefix is one that goes with underscores."""
    for prefix in _UNDERSCORED:
        if name.startswith(prefix):
            return name.removeprefix(prefix), True
    for prefix in _DOTTED:
        name = name.removeprefix(prefix)
    return name, False
