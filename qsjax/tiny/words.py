"""The text side of the tiny model: word tokenizers and frozen random encoders of LLaMA and CLIP shape.

They know the words of `qsjax.tiny.scenes` and nothing else. Nothing here is trained: the random states of
different words are nearly orthogonal, and the DiT learns what they mean.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qsjax.errors import InputError
from qsjax.text import Clip, ClipConfig, EncodedPrompt, Llama, LlamaConfig
from qsjax.tiny.scenes import VOCABULARY

PROMPT_TEMPLATE: dict[str, Any] = {"template": "{}", "crop_start": 0, "max_length": 24}
"""No system turn; the longest caption has 17 tokens."""

_PAD, _UNKNOWN, _BEGIN, _END = "<pad>", "<unk>", "<begin>", "<end>"
LLAMA_TOKENS = (_PAD, _UNKNOWN, _BEGIN, *VOCABULARY)
# End-of-text has the highest id: CLIP pools there by that rule, or by the configured id; both must agree.
CLIP_TOKENS = (_PAD, _UNKNOWN, _BEGIN, *VOCABULARY, _END)
_CLIP_WINDOW = 77

LLAMA_CONFIG = LlamaConfig(
    vocab_size=len(LLAMA_TOKENS),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    max_position_embeddings=512,
)
CLIP_CONFIG = ClipConfig(
    vocab_size=len(CLIP_TOKENS),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=_CLIP_WINDOW,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=len(CLIP_TOKENS) - 1,
)


@functools.cache
def llama(seed: int = 0) -> Llama:
    """The frozen LLaMA-shaped encoder: a word's state is its own embedding plus a trace of those before it."""
    with jax.ensure_compile_time_eval():  # the first call may come from inside a jitted step
        module = Llama(LLAMA_CONFIG, rngs=nnx.Rngs(seed))
        return _filled(module, seed, {"embed.embedding": 1.0, "o_proj": 0.7, "down_proj": 0.5})


@functools.cache
def clip(seed: int = 1) -> Clip:
    """The frozen CLIP-shaped encoder; its attention is loud, so that the pooled vector is a bag of words."""
    gains = {"token_embed.embedding": 1.0, "position_embed.embedding": 0.1, "out_proj": 4.0}
    with jax.ensure_compile_time_eval():
        module = _filled(Clip(CLIP_CONFIG, rngs=nnx.Rngs(seed)), seed, gains)
        table = module.token_embed.embedding
        table.set_value(table.get_value().at[CLIP_CONFIG.eos_token_id].multiply(0.1))
        return module


class Tokens(NamedTuple):
    """Token ids of both encoders, zero-padded on the right.

    Attributes:
        ids: int32 [B, L].
        pooled_ids: int32 [B, L + 1].
    """

    ids: Any
    pooled_ids: Any


def tokenize(captions: Sequence[str], length: int | None = None) -> Tokens:
    """Token ids of captions as the shipped tokenizers give them.

    Args:
        captions: words of `VOCABULARY`; another word is read as unknown.
        length: L, begin-of-text included; None is that of the longest caption.

    Raises:
        InputError: a caption is longer than `length`.
    """
    longest = 1 + max(len(caption.split()) for caption in captions)
    length = longest if length is None else length
    if longest > length:
        raise InputError(f"a caption has {longest} tokens, {length} were asked for")
    ids = np.zeros((len(captions), length), np.int32)
    pooled_ids = np.zeros((len(captions), length + 1), np.int32)
    for row, caption in enumerate(captions):
        words = caption.split()
        ids[row, : 1 + len(words)] = [_id(LLAMA_TOKENS, w) for w in (_BEGIN, *words)]
        pooled_ids[row, : 2 + len(words)] = [_id(CLIP_TOKENS, w) for w in (_BEGIN, *words, _END)]
    return Tokens(ids, pooled_ids)


def encode_tokens(tokens: Tokens) -> EncodedPrompt:
    """What the shipped encoders make of token ids; works inside `jax.jit`.

    Returns:
        float32 states [B, L, 64], mask [B, L], pooled vectors [B, 64].
    """
    ids, pooled_ids = map(jnp.asarray, tokens)
    mask = ids != 0
    return EncodedPrompt(llama()(ids, mask), mask, clip()(pooled_ids))


def encode(captions: Sequence[str]) -> EncodedPrompt:
    """Encode captions as the shipped encoders do; text is cut to the longest caption."""
    return encode_tokens(tokenize(captions))


def tokenizer_files(kind: str) -> dict[str, str]:
    """File name -> JSON text of a tokenizer folder, loadable by transformers and by tokenizers alone.

    Args:
        kind: "llama" (begin-of-text is added) or "clip" (begin- and end-of-text are added).
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    names = LLAMA_TOKENS if kind == "llama" else CLIP_TOKENS
    tokenizer = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=_UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\ban\b"), "a")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = f"{_BEGIN} $A" if kind == "llama" else f"{_BEGIN} $A {_END}"
    special = [name for name in (_BEGIN, _END) if name in names]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, names.index(name)) for name in special]
    )
    tokenizer.add_special_tokens([name for name in (_PAD, _UNKNOWN, *special)])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512 if kind == "llama" else _CLIP_WINDOW,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "pad_token": _PAD,
        "unk_token": _UNKNOWN,
        "bos_token": _BEGIN,
        **({"eos_token": _END} if kind == "clip" else {}),
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2),
    }


def _id(names: tuple[str, ...], word: str) -> int:
    word = "a" if word == "an" else word
    return names.index(word) if word in names else names.index(_UNKNOWN)


def _filled(module: Any, seed: int, gains: dict[str, float]) -> Any:
    """Gaussian weights of standard deviation gain / sqrt(inputs) (embeddings: gain); norms and biases stay."""
    random = np.random.default_rng(seed)
    graph, state = nnx.split(module)
    flat = []
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        value = variable.get_value()
        if name.endswith(("kernel", "embedding")):
            gain = next((g for part, g in gains.items() if part in name), 1.0)
            spread = gain if name.endswith("embedding") else gain / np.sqrt(value.shape[-2])
            value = jnp.asarray(spread * random.standard_normal(value.shape), jnp.float32)
        flat.append((path, variable.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(flat))
