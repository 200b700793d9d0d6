"""Prompts to token ids, in a window of fixed length.

The `tokenizers` library alone reads the `tokenizer.json` of a checkpoint: importing transformers for it would
cost a second or more, and its tokenizer classes add rules of their own.
"""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from qsjax.errors import CheckpointError, InputError


class PromptTruncatedWarning(UserWarning):
    """A prompt is longer than the text window, so its end has no influence on the video."""


class Tokens(NamedTuple):
    """A batch of tokenized texts.

    Attributes:
        ids: token ids, padded on the right.
        mask: True for tokens, False for padding.
        lost: tokens of each text that did not fit.
    """

    ids: Int[np.ndarray, "B L"]
    mask: Bool[np.ndarray, "B L"]
    lost: tuple[int, ...]


class PromptTokenizer:
    """The tokenizer of one text encoder.

    Args:
        directory: holds `tokenizer.json` and, if the pad token is not in it, `tokenizer_config.json` or
            `special_tokens_map.json`.
        length: tokens per text; longer texts lose their end (not the special tokens which the tokenizer adds).

    Attributes:
        vocab_size: one more than the highest id that can occur.

    Raises:
        CheckpointError: the files are absent or damaged.
    """

    def __init__(self, directory: str | os.PathLike[str], *, length: int) -> None:
        self._directory, self.length = Path(directory), length
        self._tokenizer = _read_tokenizer(self._directory / "tokenizer.json")
        self._pad_id = self._find_pad_id()
        self._tokenizer.no_padding()
        added = self._tokenizer.num_special_tokens_to_add(False)
        if length <= added:
            raise CheckpointError(
                f"{self._directory}: the text window has {length} tokens, but the tokenizer itself adds {added}; "
                f"convert again with a longer max_length"
            )
        self.vocab_size = max(self._tokenizer.get_vocab(True).values(), default=-1) + 1

    def ids(self, text: str) -> list[int]:
        """The ids of `text` at full length, with the special tokens that the tokenizer puts before it, without those it appends."""
        self._tokenizer.no_truncation()
        encoding = self._tokenizer.encode(text)
        ends = [i + 1 for i, added in enumerate(encoding.special_tokens_mask) if not added]
        return encoding.ids[: ends[-1] if ends else None]

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize, truncate and pad on the right."""
        self._tokenizer.enable_truncation(self.length)
        ids = np.full((len(texts), self.length), self._pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        lost = []
        for row, text in enumerate(texts):
            encoding = self._tokenizer.encode(text)
            count = len(encoding.ids)
            ids[row, :count], mask[row, :count] = encoding.ids, True
            # The pieces cut off carry special tokens of their own, which no text contained.
            lost.append(sum(piece.special_tokens_mask.count(0) for piece in encoding.overflowing))
        return Tokens(ids, mask, tuple(lost))

    def _find_pad_id(self) -> int:
        """The id that fills the padding; the pooled CLIP vector of old configurations needs the right one."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            token = _read_json(self._directory / name).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is None:
                continue
            pad_id = self._tokenizer.token_to_id(token)
            if pad_id is None:
                raise CheckpointError(
                    f"{self._directory / name}: pad_token {token!r} is not in tokenizer.json; copy both from one model"
                )
            return pad_id
        return (self._tokenizer.padding or {"pad_id": 0})["pad_id"]


def warn_if_truncated(
    prompts: Sequence[str], tokens: Tokens, *, encoder: str, crop_start: int = 0
) -> None:
    """Say which prompts were cut, and at what length.

    Args:
        prompts: as given by the user.
        tokens: what they became.
        encoder: its name, for the message.
        crop_start: leading tokens that are the template's.
    """
    for prompt, mask, lost in zip(prompts, tokens.mask, tokens.lost, strict=True):
        if lost:
            kept = int(mask[crop_start:].sum())
            warnings.warn(
                f"prompt {_shorten(prompt)} is too long for {encoder}: its first {kept} tokens were kept, "
                f"{lost} were dropped; shorten it",
                PromptTruncatedWarning,
                stacklevel=3,
            )


def require_tokens(
    prompts: Sequence[str], tokens: Tokens, *, encoder: str, crop_start: int = 0
) -> None:
    """Refuse prompts that leave an encoder without any token.

    Raises:
        InputError: naming the first such prompt.
    """
    for prompt, mask in zip(prompts, tokens.mask, strict=True):
        if not mask[crop_start:].any():
            raise InputError(
                f"prompt {_shorten(prompt)} gives {encoder} no token to read; write at least one word"
            )


def _shorten(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else prompt[:37] + "...")


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: the tokenizer is missing; convert the checkpoint again with its tokenizer"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{path}: is not a tokenizer ({error}); convert the checkpoint again with its tokenizer"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); convert the checkpoint again with its tokenizer"
        ) from error
    return content if isinstance(content, dict) else {}
