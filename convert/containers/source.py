"""What every container offers: named tensors with shapes and dtypes, read one at a time."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor; bfloat16 and float8 are ml_dtypes'."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def possible(self) -> bool:
        """Whether numpy can express such an array; an empty one may have absurd other dimensions."""
        if len(self.shape) > 16:
            return False
        return math.prod(size or 1 for size in self.shape) * self.dtype.itemsize < 1 << 62


def begin_of(info: TensorInfo, rows: tuple[int, int] | None) -> tuple[int, tuple[int, ...]]:
    """Where the rows `start:stop` of a contiguous tensor begin, in bytes, and their shape; None means all."""
    if rows is None:
        return 0, info.shape
    row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
    return rows[0] * row_bytes, (rows[1] - rows[0], *info.shape[1:])


class Source(abc.ABC):
    """An open container. A context manager; after `close` nothing can be read any more.

    Attributes:
        tensors: name -> shape and dtype, names exactly as stored (VAE: without a leading `vae.`).
        container: what was found, for the report ("safetensors", "torch .pt (module)", ...).
        files: every file the tensors and the configuration come from.
        config: the `config.json` beside the weights, or None.
        ignored: entries of the container that are no part of the weights (a step counter).
        metadata: strings beside the tensors.
        lora: what the manifest says of each LoRA file that is merged into the tensors.
    """

    tensors: Mapping[str, TensorInfo]
    container: str
    files: tuple[Path, ...]
    config: dict[str, Any] | None = None
    ignored: tuple[str, ...] = ()
    metadata: Mapping[str, str] = MappingProxyType({})
    lora: tuple[dict[str, Any], ...] = ()

    def stored_dtype(self, name: str) -> np.dtype:
        """The dtype in which the tensor `name` is kept if none is asked for; `read` may give it more precisely."""
        return self.tensors[name].dtype

    @abc.abstractmethod
    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """The tensor `name`, or its rows `start:stop`, in a fresh C-contiguous array of the announced dtype.

        Rows are read without the rest: one embedding table can be larger than all that a conversion may hold.

        Raises:
            CheckpointError: the file no longer holds what it held when it was opened.
        """

    def is_here(self, name: str) -> bool:
        """Whether `read` gives the tensor without fetching a file."""
        return True

    def files_of(self, name: str) -> tuple[Path, ...]:
        """The files, of `files`, that reading a tensor needs; all, unless a container knows better."""
        return self.files

    @abc.abstractmethod
    def close(self) -> None:
        """Close the files."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
