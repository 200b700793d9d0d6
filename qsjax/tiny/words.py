"""Captions to token ids to the states of the frozen encoders; and the tokenizers as files.

The tokenizers know the words of `qsjax.tiny.scenes` and nothing else.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from qsjax.errors import InputError
from qsjax.text import EncodedPrompt
from qsjax.tiny import encoders
from qsjax.tiny.configs import (
    BEGIN,
    CLIP_CONFIG,
    CLIP_TOKENS,
    END,
    LLAMA_TOKENS,
    PAD,
    UNKNOWN,
)

PROMPT_TEMPLATE: dict[str, Any] = {"template": "{}", "crop_start": 0, "max_length": 24}
"""No system turn; the longest caption has 17 tokens."""
TEXT_LENGTH = 16
"""Tokens of the longest caption; shorter ones are padded, so that every batch has one shape."""


class Tokens(NamedTuple):
    """Token ids of both encoders, int32, zero-padded on the right."""

    ids: Int[Array | np.ndarray, "B L"]
    pooled_ids: Int[Array | np.ndarray, "B L+1"]


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
        ids[row, : 1 + len(words)] = [_id(LLAMA_TOKENS, w) for w in (BEGIN, *words)]
        pooled_ids[row, : 2 + len(words)] = [_id(CLIP_TOKENS, w) for w in (BEGIN, *words, END)]
    return Tokens(ids, pooled_ids)


@jax.jit
def encode_tokens(tokens: Tokens) -> EncodedPrompt:
    """What the shipped encoders make of token ids; works inside `jax.jit`.

    Returns:
        float32 states [B, L, 64], mask [B, L], pooled vectors [B, 64].
    """
    ids, pooled_ids = map(jnp.asarray, tokens)
    mask = ids != 0
    return EncodedPrompt(encoders.llama()(ids, mask), mask, encoders.clip()(pooled_ids))


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
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\ban\b"), "a")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = f"{BEGIN} $A" if kind == "llama" else f"{BEGIN} $A {END}"
    special = [name for name in (BEGIN, END) if name in names]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, names.index(name)) for name in special]
    )
    tokenizer.add_special_tokens([name for name in (PAD, UNKNOWN, *special)])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512 if kind == "llama" else CLIP_CONFIG.max_position_embeddings,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "bos_token": BEGIN,
        **({"eos_token": END} if kind == "clip" else {}),
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2),
    }


def _id(names: tuple[str, ...], word: str) -> int:
    word = "a" if word == "an" else word
    return names.index(word) if word in names else names.index(UNKNOWN)
