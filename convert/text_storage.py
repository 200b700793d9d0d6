"""Text encoders stored in 8 bits: a checkpoint holds the integers that loading would make of its floating-point weights.

An int8 matrix has a float32 scale for each output channel (`qsjax.text.int8`); embeddings, norms and biases stay as they are.
LLaMA then takes half the disk and half the time to read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from convert.component import Component
from convert.containers import TensorInfo
from convert.keymaps import Row
from convert.quantized import on_host
from qsjax.checkpoint import Manifest
from qsjax.config import nearest
from qsjax.errors import InputError
from qsjax.text.int8 import quantize_kernel

STORAGES = ("int8",)
TEXT_ENCODERS = ("llama", "clip")


class Int8Text(Component):
    """A text encoder with every linear layer's kernel in 8 bits, as `qsjax.text.int8.Int8Linear` has it."""

    def outputs(self, row: Row) -> dict[str, TensorInfo]:
        """The leaves of a row: a kernel has two, its integers [I, O] and their scales [O]."""
        if not row.leaf.endswith(".kernel"):
            return super().outputs(row)
        return {
            row.leaf: TensorInfo(row.shape, np.dtype(np.int8)),
            _scale(row): TensorInfo(row.shape[1:], np.dtype(np.float32)),
        }

    def make(self, row: Row, rows: tuple[int, int] | None) -> dict[str, np.ndarray]:
        """Their values, of the weights in the source's own precision, whatever the others are stored in."""
        if not row.leaf.endswith(".kernel"):
            return super().make(row, rows)
        kernel = row.to_leaf(self.read, np.dtype(np.float32))
        with on_host():
            integers, scale = quantize_kernel(kernel)
        return {row.leaf: np.asarray(integers), _scale(row): np.asarray(scale)}

    def details(self) -> dict[str, Any]:
        """The storage, for the manifest."""
        return {"storage": "int8"}

    def digest(self) -> str:
        """That of the source, with the storage."""
        content = [super().digest(), self.details()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def with_text_storage(
    components: Mapping[str, Component], storage: str | None
) -> dict[str, Component]:
    """The components with the text encoders, and nothing else, in 8 bits; unchanged for None.

    Raises:
        InputError: an unknown storage, or there is no text encoder.
    """
    if storage is None:
        return dict(components)
    if storage not in STORAGES:
        raise InputError(f"unknown text storage {storage!r}; {nearest(storage, STORAGES)}")
    if not components.keys() & set(TEXT_ENCODERS):
        raise InputError(
            "`text_storage` is for text encoders, and none is to be converted; name one"
        )
    return {
        name: Int8Text(**{field.name: getattr(part, field.name) for field in fields(part)})
        if name in TEXT_ENCODERS
        else part
        for name, part in components.items()
    }


def stored_text_storage(manifest: Manifest) -> str | None:
    """How the text encoders of a checkpoint are stored: "int8", or None for floating point."""
    components = manifest.components
    found = (components[name].storage for name in TEXT_ENCODERS if name in components)
    return next((storage for storage in found if storage is not None), None)


def require_text_storage(manifest: Manifest, storage: str) -> None:
    """Refuse a checkpoint whose text encoders are stored otherwise.

    Raises:
        InputError: they are.
    """
    if stored_text_storage(manifest) != storage:
        raise InputError(
            f"{manifest.directory}: exists and its text encoders are not {storage}; leave `text_storage` out to verify it as it"
            f" is, or pass `overwrite=True` to write it anew"
        )


def _scale(row: Row) -> str:
    return f"{row.leaf.removesuffix('kernel')}scale"
