"""Shapes of the two text encoders, read from and written to transformers' `config.json`.

Only keys that change the arithmetic matter; transformers' files carry dozens that do not (dropout,
generation settings, token ids of the tokenizer). A key absent from a file has transformers' default,
because files of multi-modal models list only what differs from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from qsjax.config import from_mapping
from qsjax.errors import InputError
from qsjax.untrusted import Between, check_bounds, shown
from qsjax.untrusted.bounds import Epsilon, Layers, Length, RotaryBase, Vocabulary, Width

UNUSED_LAYERS = 2
"""HunyuanVideo reads `hidden_states[-3]`: the last two decoder layers and the final norm never run."""

_LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
_LLAMA_ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}

_CLIP_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}


_Heads = Annotated[int, Between(1, 1024)]
_HeadDim = Annotated[int, Between(1, 1 << 12)]


@dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA-3 decoder, named as in transformers' `LlamaConfig`.

    Attributes:
        num_hidden_layers: of the original model; `num_used_layers` of them exist here.
        rope_theta: base of the rotary frequencies (no rotary scaling).
        max_position_embeddings: longest sequence the original was trained for, in tokens.
    """

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: _Heads
    num_key_value_heads: _Heads
    head_dim: _HeadDim
    rms_norm_eps: Epsilon
    rope_theta: RotaryBase
    max_position_embeddings: Length

    def __post_init__(self) -> None:
        check_bounds(self, source="LLaMA")
        if self.num_hidden_layers <= UNUSED_LAYERS:
            raise InputError(
                f"LLaMA: num_hidden_layers = {self.num_hidden_layers}, but the text states are taken "
                f"{UNUSED_LAYERS} layers before the end; give a model of at least {UNUSED_LAYERS + 1} layers"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"LLaMA: {self.num_attention_heads} heads cannot share {self.num_key_value_heads} "
                f"key-value heads evenly; give num_key_value_heads that divides num_attention_heads"
            )
        if self.head_dim % 2:
            raise InputError(
                f"LLaMA: head_dim = {self.head_dim}, but rotary embedding turns pairs; give an even head_dim"
            )

    @property
    def num_used_layers(self) -> int:
        """Decoder layers that run: those before `hidden_states[-3]`."""
        return self.num_hidden_layers - UNUSED_LAYERS

    @classmethod
    def from_transformers(
        cls, mapping: Mapping[str, Any], *, source: str = "LLaMA config.json"
    ) -> "LlamaConfig":
        """Read the `config.json` of a `LlamaModel`, or of a model with a LLaMA as its `text_config`.

        Raises:
            InputError: another kind of model, rotary scaling, biases, quantized weights, or a bad value.
        """
        values = _text_part(mapping, {"llama"}, source)
        _require_plain_weights(values, source)
        for key, supported in _LLAMA_ONLY.items():
            if values.get(key, supported) != supported:
                raise InputError(
                    f"{source}: {key} = {shown(values[key])} is not supported, only {supported!r}; use a LLaMA-3 model"
                )
        chosen: dict[str, Any] = _LLAMA_DEFAULTS | {
            key: values[key] for key in _LLAMA_DEFAULTS if key in values
        }
        heads = chosen["num_attention_heads"]
        chosen["num_key_value_heads"] = values.get("num_key_value_heads") or heads
        chosen["head_dim"] = values.get("head_dim") or _head_dim(chosen, source)
        chosen["rope_theta"] = _rope_theta(values, source)
        return from_mapping(cls, chosen, source=source)

    def to_transformers(self) -> dict[str, Any]:
        """The `config.json` of the original (with its unused layers), for transformers' `LlamaModel`."""
        return {
            "architectures": ["LlamaModel"],
            "model_type": "llama",
            **_LLAMA_ONLY,
            **{key: getattr(self, key) for key in _LLAMA_DEFAULTS},
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rope_theta": self.rope_theta,  # where transformers before 5 looks
            "tie_word_embeddings": False,
        }


@dataclass(frozen=True)
class ClipConfig:
    """The text tower of a CLIP, named as in transformers' `CLIPTextConfig`.

    Attributes:
        max_position_embeddings: length of the text window in tokens.
        hidden_act: "quick_gelu" (x sigmoid(1.702 x)) or "gelu" (erf).
        eos_token_id: whose first position is pooled; 2 means the position of the highest id.
    """

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Annotated[int, Between(1, 1024)]
    num_attention_heads: _Heads
    max_position_embeddings: Length
    hidden_act: str
    layer_norm_eps: Epsilon
    eos_token_id: int

    def __post_init__(self) -> None:
        check_bounds(self, source="CLIP")
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise InputError(
                f"CLIP: hidden_act = {shown(self.hidden_act)} is not supported; use a model with quick_gelu or gelu"
            )
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise InputError(
                f"CLIP: eos_token_id = {self.eos_token_id} is none of the {self.vocab_size} ids of the vocabulary; correct it"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"CLIP: hidden_size = {self.hidden_size} does not divide into {self.num_attention_heads} heads; "
                f"correct one of them"
            )

    @classmethod
    def from_transformers(
        cls, mapping: Mapping[str, Any], *, source: str = "CLIP config.json"
    ) -> "ClipConfig":
        """Read the `config.json` of a `CLIPTextModel`, or of a whole `CLIPModel` with its `text_config`.

        Raises:
            InputError: another kind of model, an unknown activation, quantized weights, or a bad value.
        """
        values = _text_part(mapping, {"clip_text_model"}, source)
        _require_plain_weights(values, source)
        chosen = _CLIP_DEFAULTS | {key: values[key] for key in _CLIP_DEFAULTS if key in values}
        return from_mapping(cls, chosen, source=source)

    def to_transformers(self) -> dict[str, Any]:
        """The `config.json` for transformers' `CLIPTextModel`."""
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **{key: getattr(self, key) for key in _CLIP_DEFAULTS},
            # Read by the tokenizer side only; transformers' defaults would lie outside a small vocabulary.
            "bos_token_id": min(49406, self.vocab_size - 1),
            "pad_token_id": min(1, self.vocab_size - 1),
            "projection_dim": self.hidden_size,
        }


def _text_part(mapping: Mapping[str, Any], kinds: set[str], source: str) -> Mapping[str, Any]:
    nested = mapping.get("text_config")
    if nested is not None and not isinstance(nested, Mapping):
        raise InputError(f"{source}: text_config should be a JSON object, found {shown(nested)}")
    values = mapping if nested is None else nested
    kind = values.get("model_type")
    if kind is None and nested is None and "model_type" not in mapping:
        raise InputError(
            f"{source}: has no model_type, so it is not a transformers configuration; "
            f"give one of model_type {' or '.join(sorted(kinds))}"
        )
    if kind is not None and not (isinstance(kind, str) and kind in kinds):
        raise InputError(
            f"{source}: model_type is {shown(kind)}, expected {' or '.join(sorted(kinds))}; name another text encoder"
        )
    # Quantized weights are announced beside `text_config`, not inside it.
    return {**values, "quantization_config": mapping.get("quantization_config")}


def _require_plain_weights(values: Mapping[str, Any], source: str) -> None:
    if values.get("quantization_config"):
        raise InputError(
            f"{source}: the weights are quantized (quantization_config); use the unquantized model"
        )


def _rope_theta(values: Mapping[str, Any], source: str) -> object:
    legacy, current = values.get("rope_scaling"), values.get("rope_parameters")
    theta = values.get("rope_theta", 10000.0)
    for rope in (legacy, current):
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise InputError(
                f"{source}: rotary parameters should be a JSON object, found {shown(rope)}"
            )
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise InputError(
                f"{source}: rotary scaling of type {shown(kind)} is not supported; "
                f"use a model with plain rotary embedding, as llava-llama-3-8b"
            )
        theta = rope.get("rope_theta", theta)
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise InputError(
                f"{source}: partial_rotary_factor = {shown(rope['partial_rotary_factor'])} is not supported; "
                f"use a model that rotates whole heads"
            )
    return theta


def _head_dim(values: Mapping[str, Any], source: str) -> int:
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError(
            f"{source}: hidden_size = {shown(width)} does not divide into num_attention_heads = {shown(heads)}; "
            f"give head_dim or correct one of them"
        )
    return width // heads
