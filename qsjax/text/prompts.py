"""Encoded prompts in a file, so that the text encoders need not be in memory while sampling.

A safetensors file with tensors `text`, `mask` and `pooled` in the dtypes they were computed in, and the prompts
themselves in its metadata. A file may come from anyone: it is checked before it is used.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qsjax.checkpoint import write_atomically
from qsjax.errors import InputError
from qsjax.text.encoder import EncodedPrompt

FORMAT = "qsjax encoded prompts"
FORMAT_VERSION = 1
_RANKS = {"text": 3, "mask": 2, "pooled": 2}


def save_prompts(
    path: str | os.PathLike[str], encoded: EncodedPrompt, prompts: Sequence[str]
) -> None:
    """Write encoded prompts; the file appears whole or not at all.

    Args:
        path: of the safetensors file.
        encoded: a batch.
        prompts: its texts, kept for the reader of the file.

    Raises:
        InputError: as many texts as rows are needed, or the file cannot be written.
    """
    arrays = {name: np.asarray(value) for name, value in encoded._asdict().items()}
    if len(prompts) != arrays["text"].shape[0]:
        raise InputError(
            f"{path}: {len(prompts)} texts were given for {arrays['text'].shape[0]} encoded prompts; give one for each"
        )
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "prompts": json.dumps(list(prompts), ensure_ascii=False),
    }
    try:
        write_atomically(Path(path), save(arrays, metadata))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); name a file in a writable folder"
        ) from error


def load_prompts(path: str | os.PathLike[str]) -> EncodedPrompt:
    """Read encoded prompts, in the dtypes they were saved in.

    Raises:
        InputError: the file is absent, damaged, of a newer version, or not what `save_prompts` writes.
    """
    return _read(path)[0]


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """The texts whose encodings a file holds.

    Raises:
        InputError: as `load_prompts`.
    """
    return _read(path)[1]


def _read(path: str | os.PathLike[str]) -> tuple[EncodedPrompt, list[str]]:
    try:
        with safe_open(path, framework="flax") as file:
            metadata = file.metadata() or {}
            _require_version(path, metadata)
            names = set(file.keys())
            if names != set(_RANKS):
                raise InputError(
                    f"{path}: expected tensors {', '.join(_RANKS)}, found {', '.join(sorted(names)) or 'none'}; "
                    f"encode the prompts again"
                )
            encoded = EncodedPrompt(**{name: file.get_tensor(name) for name in _RANKS})
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read as encoded prompts ({error}); encode the prompts again"
        ) from error
    texts = _texts(path, metadata)
    problem = _problem(encoded, len(texts))
    if problem:
        raise InputError(f"{path}: {problem}; encode the prompts again")
    return encoded, texts


def _require_version(path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    version = metadata.get("format_version", "")
    if metadata.get("format") != FORMAT or not version.isdecimal():
        raise InputError(
            f"{path}: is a safetensors file but not one of encoded prompts; name one that save_prompts wrote"
        )
    if int(version) > FORMAT_VERSION:
        raise InputError(
            f"{path}: has format version {version}, this qsjax reads up to {FORMAT_VERSION}; upgrade qsjax"
        )


def _texts(path: str | os.PathLike[str], metadata: dict[str, str]) -> list[str]:
    try:
        texts = json.loads(metadata["prompts"])
    except (KeyError, ValueError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path}: holds no list of prompts; encode the prompts again")
    return texts


def _problem(encoded: EncodedPrompt, batch: int) -> str | None:
    for name, array in encoded._asdict().items():
        expected = "bool" if name == "mask" else "floating"
        if array.dtype != bool if name == "mask" else not jnp.issubdtype(array.dtype, jnp.floating):
            return f"{name} has dtype {array.dtype}, expected {expected}"
        if array.ndim != _RANKS[name] or array.shape[0] != batch or not array.size:
            return f"{name} has shape {array.shape}, expected {_RANKS[name]} axes and {batch} rows"
    if encoded.mask.shape != encoded.text.shape[:2]:
        return f"mask has shape {encoded.mask.shape}, text {encoded.text.shape}"
    mask = np.asarray(encoded.mask)
    if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
        return "mask is not a run of tokens followed by padding"
    if not all(np.isfinite(np.asarray(array)).all() for array in (encoded.text, encoded.pooled)):
        return "it holds numbers that are not finite"
    return None
