"""GGUF files, written and dequantized by the words of the format, without the package `gguf`."""

import struct
from math import prod

import ml_dtypes
import numpy as np

TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}  # fmt: skip
"""Name -> number, elements and bytes of a block."""
PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
U32, I32, F32, TEXT, LIST = 4, 5, 6, 8, 9
_CODES = {U32: "<I", I32: "<i", F32: "<f", 10: "<Q"}


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind, content):
    """A value of the metadata: a number, a text, or (kind of elements, elements)."""
    if kind == TEXT:
        return text(content)
    if kind == LIST:
        inner, elements = content
        return struct.pack("<IQ", inner, len(elements)) + b"".join(
            value(inner, element) for element in elements
        )
    return struct.pack(_CODES[kind], content)


def gguf(tensors, fields=(), *, alignment=32, version=3, sizes=None):
    """A file's bytes.

    Args:
        tensors: name -> number of its type, shape as PyTorch has it, data.
        fields: of the metadata: key, kind, content.
        alignment: of the data.
        version: of the format.
        sizes: bytes of each tensor, of a file whose data are written elsewhere; None takes those of the data.
    """
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    for key, kind, content in fields:
        head += text(key) + struct.pack("<I", kind) + value(kind, content)
    data, edge = [], 0
    for name, (kind, shape, content) in tensors.items():
        dimensions = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        head += text(name) + struct.pack("<I", len(shape)) + dimensions
        head += struct.pack("<IQ", kind, edge)
        size = len(content) if sizes is None else sizes[name]
        edge += size + -size % alignment
        data += [content, b"" if sizes else bytes(-size % alignment)]
    return head + bytes(-len(head) % alignment) + b"".join(data)


def write(path, tensors, fields=(("general.architecture", TEXT, "hyvid"),), **options):
    """A file."""
    path.write_bytes(gguf(tensors, fields, **options))
    return path


def stored(kind, shape, numbers, seed=0):
    """A tensor for `gguf` and its float32 numbers: the given ones if plain or Q8_0, else random integers, of about 0.02."""
    number, elements, nbytes = TYPES[kind]
    if kind in PLAIN:
        plain = np.asarray(numbers, np.float32).astype(PLAIN[kind])
        return (number, shape, plain.tobytes()), plain.astype(np.float32)
    count = prod(shape) // elements
    blocks = np.random.default_rng(seed).integers(0, 256, (count, nbytes), np.uint8)
    half = lambda x: np.full((count, 1), x, np.float16).view(np.uint8)  # noqa: E731
    if kind == "Q8_0":
        rows = np.asarray(numbers, np.float32).reshape(count, 32)
        scale = (abs(rows).max(1, keepdims=True) / 127).astype(np.float16)
        integers = np.round(rows / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
        blocks = np.concatenate([scale.view(np.uint8), integers.view(np.uint8)], 1)
    elif kind == "Q4_0":
        blocks[:, :2] = half(5e-3)
    else:
        blocks[:, :2], blocks[:, 2:4] = half(1e-4), half(7.5e-4)
    return (number, shape, blocks.tobytes()), FORMULAS[kind](blocks).reshape(shape)


def q8_0(blocks):
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def q4_0(blocks):
    integers = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], 1)
    return _half(blocks[:, :2]) * (integers.astype(np.float32) - 8)


def q4_k(blocks):
    """Eight runs of 32; two share 32 bytes. Scales and minima have six bits, in twelve bytes."""
    scale, least = _half(blocks[:, :2]), _half(blocks[:, 2:4])
    s, integers = blocks[:, 4:16].astype(np.int32), blocks[:, 16:].reshape(-1, 4, 32)
    runs = []
    for j in range(8):
        if j < 4:
            factor, offset = s[:, j] & 63, s[:, j + 4] & 63
        else:
            factor = s[:, j + 4] & 15 | s[:, j - 4] >> 6 << 4
            offset = s[:, j + 4] >> 4 | s[:, j] >> 6 << 4
        q = integers[:, j // 2] >> 4 if j % 2 else integers[:, j // 2] & 15
        runs.append(scale * factor[:, None] * q - least * offset[:, None])
    return np.concatenate(runs, 1).astype(np.float32)


FORMULAS = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_K": q4_k}


def _half(data):
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)


def rotary_pairs(rows, heads):
    """Queries or keys as llama.cpp stores them: of each head the rows of the two halves in turn."""
    size = rows.shape[0] // heads
    order = [h * size + j + i * size // 2 for h in range(heads) for j in range(size // 2) for i in (0, 1)]  # fmt: skip
    return rows[order]
