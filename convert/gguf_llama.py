"""The configuration of a LLaMA in llama.cpp's GGUF: sizes from its shapes, the rest from its metadata, and both compared."""

from typing import Any

import numpy as np

from convert.containers import GgufFile
from convert.keymaps.detect import ComponentConfig
from convert.known_text_encoders import published
from qsjax.config import from_mapping
from qsjax.errors import CheckpointError, InputError
from qsjax.text.config import LlamaConfig
from qsjax.untrusted import shown

_TABLE = "token_embd.weight"
_SAID = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("embedding_length",),
    "intermediate_size": ("feed_forward_length",),
    "num_hidden_layers": ("block_count",),
    "num_attention_heads": ("attention.head_count",),
    "num_key_value_heads": ("attention.head_count_kv",),
    "head_dim": ("attention.key_length", "attention.value_length", "rope.dimension_count"),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon",),
    "rope_theta": ("rope.freq_base",),
    "max_position_embeddings": ("context_length",),
}
"""Field of `LlamaConfig` -> the keys that say it, after "llama."."""
_DECIMAL = ("rms_norm_eps", "rope_theta")
_PLAIN = {"rope.scaling.type": "none", "rope.scale_linear": 1, "expert_count": 0}
"""What a plain LLaMA says, if anything."""
_ROPE_THETA = 1e4
"""llama.cpp's, where a file says nothing of it."""


def gguf_llama(source: GgufFile) -> LlamaConfig | None:
    """The configuration of llama.cpp's LLaMA; None if the tensors have other names than llama.cpp's.

    Raises:
        InputError: it is another architecture, scales its rotary embedding, or does not say how many heads it has.
        CheckpointError: metadata and shapes contradict each other.
    """
    if _TABLE not in source.tensors:
        return None
    path, said = source.files[0], _said(source)
    sizes = _sizes(source)
    queries, keys = sizes.pop("queries"), sizes.pop("keys")
    known = published("llama")
    assert isinstance(known, LlamaConfig)
    usual = (known.hidden_size, known.intermediate_size, known.num_hidden_layers)
    heads = (known.num_attention_heads * known.head_dim, known.num_key_value_heads * known.head_dim)
    values: dict[str, Any] = {
        "max_position_embeddings": known.max_position_embeddings,
        "rope_theta": _ROPE_THETA,
        **said,
        **sizes,
    }
    count = said.get("num_attention_heads")
    if count is None:
        found = (sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"])
        if (*found, queries, keys) != (*usual, *heads):
            raise InputError(
                f"{path}: does not say llama.attention.head_count, and its shapes are not those of HunyuanVideo's LLaMA; get a file with its metadata"
            )
        values = {**vars(known), **values, "num_attention_heads": known.num_attention_heads}
        values["rope_theta"] = said.get("rope_theta", known.rope_theta)
    elif "rms_norm_eps" not in values:
        raise InputError(
            f"{path}: does not say llama.attention.layer_norm_rms_epsilon; get a file with its metadata"
        )
    values["head_dim"] = queries // max(1, values["num_attention_heads"])
    values["num_key_value_heads"] = keys // max(1, values["head_dim"])
    try:
        config = from_mapping(LlamaConfig, values, source="its metadata")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    require_same(source, config)
    return config


def require_same(source: GgufFile, config: ComponentConfig) -> None:
    """Compare a configuration with what the metadata say.

    Raises:
        InputError: the file is of another architecture, or scales its rotary embedding.
        CheckpointError: they differ.
    """
    if not isinstance(config, LlamaConfig) or _TABLE not in source.tensors:
        return
    for field, value in _said(source).items():
        if getattr(config, field) != value:
            raise CheckpointError(
                f"{source.files[0]}: says {field} = {shown(value)} in its metadata, and its tensors or its config.json say {shown(getattr(config, field))}; download it again"
            )


def _said(source: GgufFile) -> dict[str, Any]:
    """What the metadata say of the fields of `LlamaConfig`."""
    path, fields = source.files[0], source.fields
    architecture = fields.get("general.architecture", "llama")
    if architecture != "llama":
        raise InputError(
            f"{path}: is a model of the architecture {shown(architecture)}, and HunyuanVideo's text encoder is a llama; name another file"
        )
    scaled = [
        f"{key} = {shown(fields[f'llama.{key}'])}"
        for key, plain in _PLAIN.items()
        if fields.get(f"llama.{key}", plain) != plain
    ]
    scaled += ["rope_freqs.weight"] if "rope_freqs.weight" in source.tensors else []
    if scaled:
        raise InputError(
            f"{path}: has {', '.join(scaled)}, which HunyuanVideo's text encoder has not; use its LLaMA, as llava-llama-3-8b"
        )
    said: dict[str, Any] = {}
    for field, keys in _SAID.items():
        kind = float if field in _DECIMAL else int
        for key in keys:
            value = fields.get(f"llama.{key}")
            if value is None:
                continue
            # Written in float32: the shortest decimal is what was meant, 1e-05.
            value = float(str(np.float32(value))) if type(value) is float else value
            if type(value) is not kind or said.get(field, value) != value:
                raise CheckpointError(
                    f"{path}: llama.{key} is {shown(value)}, which is no {field} of it; download it again"
                )
            said[field] = value
    return said


def _sizes(source: GgufFile) -> dict[str, int]:
    """The sizes that shapes tell; "queries" and "keys" are rows of all heads together."""
    numbers = {
        parts[1]
        for name in source.tensors
        if len(parts := name.split(".")) > 2 and parts[0] == "blk"
    }
    if numbers != {str(number) for number in range(len(numbers))} or not numbers:
        raise CheckpointError(
            f"{source.files[0]}: its {len(numbers)} blocks are not numbered from blk.0 on; download it again"
        )
    vocabulary, hidden = _matrix(source, _TABLE)
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": _matrix(source, "blk.0.ffn_up.weight")[0],
        "num_hidden_layers": len(numbers),
        "queries": _matrix(source, "blk.0.attn_q.weight")[0],
        "keys": _matrix(source, "blk.0.attn_k.weight")[0],
    }


def _matrix(source: GgufFile, name: str) -> tuple[int, int]:
    info = source.tensors.get(name)
    if info is None or len(info.shape) != 2:
        found = "no such tensor" if info is None else f"the shape {list(info.shape)}"
        raise CheckpointError(
            f"{source.files[0]}: {name} should be a matrix, and there is {found}; download the file again"
        )
    return info.shape[0], info.shape[1]
