"""Encoded prompts in a file, so that the text encoders need not be in memory while sampling.

A safetensors file with tensors `text`, `mask` and `pooled` in the dtypes they were computed in, and the prompts
themselves in its metadata. A file may come from anyone: it is checked before it is used.
"""

import contextlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qsjax.checkpoint import write_atomically
from qsjax.errors import InputError
from qsjax.text.encoder import EncodedPrompt
from qsjax.untrusted import open_regular, parse_json, shown

FORMAT = "qsjax encoded prompts"
FORMAT_VERSION = 1
_VERSION = re.compile("[0-9]{1,9}")
_RANKS = {"text": 3, "mask": 2, "pooled": 2}
_FLOATS = {"F32", "BF16", "F16"}
_LARGEST = 1 << 30
"""Bytes of a file; a prompt of HunyuanVideo's has 2 MB."""
_MOST_TOKENS = 4096
_HIGHEST = 1e6
"""Far above what text encoders give, and low enough that products of such numbers stay finite."""


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
    write_atomically(Path(path), save(arrays, metadata))


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
    with os.fdopen(open_regular(path), "rb") as opened:
        if (size := os.fstat(opened.fileno()).st_size) > _LARGEST:
            raise InputError(
                f"{path}: has {size} bytes, far more than encoded prompts need; name the right file"
            )
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="flax"))
            metadata, names = file.metadata() or {}, set(file.keys())
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error
        _require_version(path, metadata)
        if names != set(_RANKS):
            raise InputError(
                f"{path}: expected tensors {', '.join(_RANKS)}, found {shown(', '.join(sorted(names)) or 'none')}; "
                f"encode the prompts again"
            )
        texts, encoded = _texts(path, metadata), None
        try:
            parts = {name: file.get_slice(name) for name in _RANKS}
            problem = _shape_problem(
                {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()},
                len(texts),
            )
            if problem is None:
                encoded = EncodedPrompt(**{name: file.get_tensor(name) for name in _RANKS})
                problem = _value_problem(encoded)
        except Exception as error:  # what the library raises depends on the dtype
            raise _unreadable(path, error) from error
    if problem is not None or encoded is None:
        raise InputError(f"{path}: {problem}; encode the prompts again")
    return encoded, texts


def _unreadable(path: str | os.PathLike[str], error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read as encoded prompts ({shown(str(error), 200)}); encode the prompts again"
    )


def _require_version(path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    version = metadata.get("format_version", "")
    if metadata.get("format") != FORMAT or not _VERSION.fullmatch(version):
        raise InputError(
            f"{path}: is a safetensors file but not one of encoded prompts; name one that save_prompts wrote"
        )
    if int(version) > FORMAT_VERSION:
        raise InputError(
            f"{path}: has format version {version}, this qsjax reads up to {FORMAT_VERSION}; upgrade qsjax"
        )


def _texts(path: str | os.PathLike[str], metadata: dict[str, str]) -> list[str]:
    texts = parse_json(metadata.get("prompts", "null").encode(), f"{path}: the list of prompts")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path}: holds no list of prompts; encode the prompts again")
    return texts


def _shape_problem(found: dict[str, tuple[str, tuple[int, ...]]], batch: int) -> str | None:
    """What is wrong with the dtypes and shapes, before a tensor is read."""
    for name, (dtype, shape) in found.items():
        expected = {"BOOL"} if name == "mask" else _FLOATS
        if dtype not in expected:
            return f"{name} has dtype {shown(dtype)}, expected {' or '.join(sorted(expected))}"
        if len(shape) != _RANKS[name] or shape[0] != batch or not all(shape):
            return f"{name} has shape {shape}, expected {_RANKS[name]} axes and {batch} rows"
    if found["mask"][1] != found["text"][1][:2]:
        return f"mask has shape {found['mask'][1]}, text {found['text'][1]}"
    if found["mask"][1][1] > _MOST_TOKENS:
        return f"its prompts have {found['mask'][1][1]} tokens, where {_MOST_TOKENS} are the most"
    return None


def _value_problem(encoded: EncodedPrompt) -> str | None:
    mask = np.asarray(encoded.mask)
    if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
        return "mask is not a run of tokens followed by padding"
    for name, array in (("text", encoded.text), ("pooled", encoded.pooled)):
        values = np.asarray(array, np.float32)
        if not np.isfinite(values).all():
            return f"{name} holds numbers that are not finite"
        if np.abs(values).max() > _HIGHEST:
            return f"{name} holds numbers above {_HIGHEST:g}, which no text encoder gives"
    return None
