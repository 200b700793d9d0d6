"""GGUF's tensors as PyTorch arranges them.

llama.cpp rotates neighbouring rows of queries and keys, PyTorch's LLaMA the two halves of a head: of each head the rows
0, d/2, 1, d/2 + 1, ... are stored. And a kernel of five dimensions may be stored with fewer, for GGML knows four.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from convert.containers import GgufFile, Source, TensorInfo
from convert.keymaps import Row
from convert.keymaps.detect import ComponentConfig
from convert.keymaps.llama import LLAMA_CPP
from qsjax.text.config import LlamaConfig

_ROTATED = (".attn_q.weight", ".attn_k.weight")
_DIMENSIONS = 4


def arranged(source: Source, config: ComponentConfig, layout: str, rows: Sequence[Row]) -> Source:
    """The source, or a view of it whose tensors are as `rows` want them where only their arrangement differs.

    Args:
        source: open; the view closes it.
        config: the component's.
        layout: how the source names its tensors.
        rows: what they will make.
    """
    wanted = {name: shape for row in rows for name, shape in row.sources.items()}
    flat = {
        name: shape
        for name, shape in wanted.items()
        if isinstance(source, GgufFile)
        and len(shape) > _DIMENSIONS
        and name in source.tensors
        and source.tensors[name].shape[:1] == shape[:1]
        and prod(source.tensors[name].shape) == prod(shape)
    }
    head_dim = config.head_dim if isinstance(config, LlamaConfig) and layout == LLAMA_CPP else 0
    return Arranged(source, flat, head_dim) if flat or head_dim else source


class Arranged(Source):
    """A source with some shapes restored, and with the rows of queries and keys in PyTorch's order."""

    def __init__(
        self, source: Source, shapes: Mapping[str, tuple[int, ...]], head_dim: int
    ) -> None:
        self._source, self._head_dim = source, head_dim
        self.container, self.files, self.config = source.container, source.files, source.config
        self.ignored, self.metadata, self.lora = source.ignored, source.metadata, source.lora
        self.tensors = {
            name: TensorInfo(shapes.get(name, info.shape), info.dtype)
            for name, info in source.tensors.items()
        }

    def stored_dtype(self, name: str) -> np.dtype:
        """See `Source.stored_dtype`."""
        return self._source.stored_dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        shape, size = self.tensors[name].shape, self._head_dim
        if not size or not name.endswith(_ROTATED):
            return self._source.read(name, rows).reshape(-1, *shape[1:])
        start, stop = (0, shape[0]) if rows is None else rows
        first, last = start // size, -(-stop // size)  # whole heads
        stored = self._source.read(name, (first * size, last * size))
        pairs = stored.reshape(last - first, size // 2, 2, *shape[1:])
        halves = pairs.swapaxes(1, 2).reshape(stored.shape)
        return np.ascontiguousarray(halves[start - first * size : stop - first * size])

    def is_here(self, name: str) -> bool:
        """See `Source.is_here`."""
        return self._source.is_here(name)

    def files_of(self, name: str) -> tuple[Path, ...]:
        """See `Source.files_of`."""
        return self._source.files_of(name)

    def close(self) -> None:
        """Close the source."""
        self._source.close()
