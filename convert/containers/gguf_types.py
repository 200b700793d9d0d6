"""The types of GGUF's tensors: plain numbers, and blocks of integers with their scales, which the package `gguf` knows."""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from qsjax.address import install
from qsjax.errors import CheckpointError, InputError

PLAIN = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    24: np.dtype(np.int8),
    25: np.dtype(np.int16),
    26: np.dtype(np.int32),
    27: np.dtype(np.int64),
    28: np.dtype(np.float64),
    30: np.dtype(ml_dtypes.bfloat16),
}
"""Number of a type -> dtype of its elements."""


class BlockType(NamedTuple):
    """How elements are stored.

    Attributes:
        name: "F32", "Q4_K", ...
        elements: of a block; 1 for plain numbers.
        nbytes: of a block.
        plain: dtype of plain numbers, None for blocks of integers.
    """

    name: str
    elements: int
    nbytes: int
    plain: np.dtype | None


def require_gguf(path: Path) -> None:
    """Refuse a `.gguf` where the package that knows its types is absent, of whatever types the file is.

    Args:
        path: of the file, for the message.

    Raises:
        InputError: gguf is absent.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{path}: reading .gguf files needs the package gguf; install it with {install('gguf')} or give safetensors"
        ) from error


def block_type(number: int, what: str) -> BlockType:
    """The type of a tensor by its number in the file; the package `gguf` is there.

    Args:
        number: from the file.
        what: the file and the tensor, for the message.

    Raises:
        CheckpointError: the type is unknown, or is one that nobody stores weights in.
    """
    import gguf

    if number in PLAIN:
        return BlockType(PLAIN[number].name, 1, PLAIN[number].itemsize, PLAIN[number])
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError as error:
        raise CheckpointError(
            f"{what} has the type {number}, which the installed gguf does not know; download the file again, or update gguf"
        ) from error
    elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    if not _is_known(gguf, kind, nbytes):
        raise CheckpointError(
            f"{what} has the type {kind.name}, which the installed gguf does not dequantize; get the model in another type, as Q4_K or Q8_0"
        )
    return BlockType(kind.name, elements, nbytes, None)


def dequantize(blocks: np.ndarray, kind: BlockType) -> np.ndarray:
    """The numbers of whole blocks.

    Args:
        blocks: uint8 [N * kind.nbytes].
        kind: no plain one.

    Returns:
        float32 [N * kind.elements]; NaN or infinite where a scale is.
    """
    import gguf

    with np.errstate(all="ignore"):
        numbers = gguf.dequantize(blocks.reshape(1, -1), gguf.GGMLQuantizationType[kind.name])
    return numbers.reshape(-1)


@lru_cache(maxsize=64)
def _is_known(gguf: Any, kind: Any, nbytes: int) -> bool:
    """Whether the package can dequantize a type, for it has no list of them."""
    try:
        gguf.dequantize(np.zeros((1, nbytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
