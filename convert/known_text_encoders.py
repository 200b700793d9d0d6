"""The configuration of a text encoder in a single file without config.json.

Shapes tell widths, layers and the vocabulary, and neither the number of heads nor the rotary base: those are HunyuanVideo's where
all shapes but the vocabulary's are.
"""

from collections.abc import Mapping
from dataclasses import replace

from convert.containers import TensorInfo
from convert.keymaps import expand, layouts
from qsjax.config import from_mapping, preset
from qsjax.text.config import ClipConfig, LlamaConfig

PRESET = "hunyuan-video-13b"
_KINDS: Mapping[str, type[LlamaConfig] | type[ClipConfig]] = {
    "llama": LlamaConfig,
    "clip": ClipConfig,
}
_TABLES = {"llama": "embed_tokens.weight", "clip": "embeddings.token_embedding.weight"}
"""Whose rows are the vocabulary."""


def published(component: str) -> LlamaConfig | ClipConfig:
    """HunyuanVideo's "llama" or "clip"."""
    values = preset("models", PRESET)[component]
    return from_mapping(_KINDS[component], values, source=f"model preset {PRESET}")


def known_text_encoder(
    component: str, tensors: Mapping[str, TensorInfo]
) -> LlamaConfig | ClipConfig | None:
    """HunyuanVideo's configuration, with the file's vocabulary for LLaMA; None if the tensors are others.

    Args:
        component: "llama" or "clip".
        tensors: of the file.
    """
    for layout, prefix in layouts(component):
        table = tensors.get(prefix + _TABLES[component])
        if table is None:
            continue
        config = published(component)
        if isinstance(config, LlamaConfig):
            # The last layers never run, and tell all the same which model it is.
            if len(table.shape) != 2 or not _has_layers(tensors, prefix, config.num_hidden_layers):
                return None
            config = replace(config, vocab_size=table.shape[0])
        rows = expand(component, config, layout, prefix)
        shapes = {name: shape for row in rows for name, shape in row.sources.items()}
        fits = all(name in tensors and tensors[name].shape == shapes[name] for name in shapes)
        return config if fits else None
    return None


def _has_layers(tensors: Mapping[str, TensorInfo], prefix: str, count: int) -> bool:
    """Whether the file's layers are numbered from 0 to `count` - 1."""
    begin = f"{prefix}layers."
    numbers = {name.removeprefix(begin).split(".")[0] for name in tensors if name.startswith(begin)}
    return numbers == {str(number) for number in range(count)}
