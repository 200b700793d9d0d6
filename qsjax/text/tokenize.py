"""Prompts to token ids, in a window of fixed length.

The `tokenizers` library alone reads the `tokenizer.json` of a checkpoint: importing transformers for it would
cost a second or more, and its tokenizer classes add rules of their own.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import parse_object, read_bytes, shown

T = TypeVar("T")
LARGEST = 64 << 20
"""Bytes of a tokenizer; LLaMA-3's has 17 MB."""
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")


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
        files: content of these files by name, which were read already; None reads them from the directory.

    Attributes:
        vocab_size: one more than the highest id that can occur.

    Raises:
        CheckpointError: the files are absent or damaged.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        length: int,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self._directory, self.length = Path(directory), length
        files = _read_files(self._directory) if files is None else files
        if "tokenizer.json" not in files:
            raise CheckpointError(
                f"{self._directory / 'tokenizer.json'}: the tokenizer is missing; convert the checkpoint again with its tokenizer"
            )
        self._tokenizer = self._run(lambda: Tokenizer.from_str(files["tokenizer.json"].decode()))
        self._pad_id = self._find_pad_id(files)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = self._run(lambda: self._tokenizer.encode("")).ids
        known = self._tokenizer.get_vocab(True).values()
        # A template of special tokens, and the padding, may name ids that no token of the vocabulary has.
        self.vocab_size = max(*known, *added, self._pad_id, -1) + 1
        added = len(added)
        if length <= added:
            raise CheckpointError(
                f"{self._directory}: the text window has {length} tokens, but the tokenizer itself adds {added}; "
                f"convert again with a longer max_length"
            )
        if self.vocab_size > 1 << 31:
            raise CheckpointError(
                f"{self._directory}: the tokenizer has ids up to {self.vocab_size - 1}; convert again with the right one"
            )

    def ids(self, text: str) -> list[int]:
        """The ids of `text` at full length, with the special tokens that the tokenizer puts before it, without those it appends."""
        self._tokenizer.no_truncation()
        encoding = self._run(lambda: self._tokenizer.encode(text))
        ends = [i + 1 for i, added in enumerate(encoding.special_tokens_mask) if not added]
        return encoding.ids[: ends[-1] if ends else None]

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize, truncate and pad on the right."""
        self._tokenizer.enable_truncation(self.length)
        ids = np.full((len(texts), self.length), self._pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        lost = []
        for row, text in enumerate(texts):
            encoding = self._run(partial(self._tokenizer.encode, text))
            count = len(encoding.ids)
            ids[row, :count], mask[row, :count] = encoding.ids, True
            # The pieces cut off carry special tokens of their own, which no text contained.
            lost.append(sum(piece.special_tokens_mask.count(0) for piece in encoding.overflowing))
        return Tokens(ids, mask, tuple(lost))

    def _run(self, work: Callable[[], T]) -> T:
        """Work of the library, which raises bare exceptions, and panics at files that contradict themselves."""
        try:
            return work()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise CheckpointError(
                f"{self._directory / 'tokenizer.json'}: is not a tokenizer ({shown(str(error), 200)}); convert the checkpoint"
                f" again with its tokenizer"
            ) from error

    def _find_pad_id(self, files: Mapping[str, bytes]) -> int:
        """The id that fills the padding; the pooled CLIP vector of old configurations needs the right one."""
        for name in _BESIDE:
            if name not in files:
                continue
            token: Any = parse_object(files[name], f"{self._directory / name}: it").get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is None:
                continue
            pad_id = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
            if pad_id is None:
                raise CheckpointError(
                    f"{self._directory / name}: pad_token {shown(token)} is not in tokenizer.json; copy both from one model"
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


def _read_files(directory: Path) -> dict[str, bytes]:
    """The files of a tokenizer that are there."""
    there = [name for name in ("tokenizer.json", *_BESIDE) if os.path.lexists(directory / name)]
    return {name: read_bytes(directory / name, LARGEST) for name in there}
