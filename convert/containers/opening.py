"""Opening any container as a Source."""

import os
from pathlib import Path

import numpy as np

from convert.containers.float8 import float8_names
from convert.containers.float8_safetensors import with_float8
from convert.containers.folder import GGUF_SUFFIX, INDEX, SHARD, TORCH_SUFFIXES, find_weights
from convert.containers.gguf_file import GgufFile
from convert.containers.safetensors_file import SafetensorsFile
from convert.containers.scaled_fp8 import ScaledFp8
from convert.containers.sharded import ShardedSafetensors
from convert.containers.source import Source
from convert.containers.torch_file import TorchFile
from qsjax.errors import InputError
from qsjax.untrusted import read_object
from qsjax.untrusted.files import SMALL


def open_source(path: str | os.PathLike[str], component: str) -> Source:
    """Open the weights of a component for reading tensor by tensor.

    Args:
        path: a safetensors file, a shard index, a `.pt`, a `.gguf`, or a folder that holds one of these.
        component: "dit", "vae", "llama" or "clip"; decides where a folder of several components is
            searched, and for "vae" that a leading `vae.` is stripped from the names.

    Returns:
        The open source; close it, or use it as a context manager. Float8 weights show as what they stand for, bfloat16 or float32;
        so do GGUF's, in float32.

    Raises:
        InputError: nothing usable is there, or more than one thing; or a `.pt` and no PyTorch, a quantized `.gguf` and no gguf.
        CheckpointError: the files are damaged or contradict each other.
    """
    place = Path(path)
    weights = find_weights(place, component) if place.is_dir() else place
    source = _open(weights)
    try:
        if any(name.endswith(".packed") for name in source.tensors):
            raise InputError(
                f"{weights}: is the export of a quantized transformer, which is not read again; name the checkpoint it was made from"
            )
        if component == "vae" and any(name.startswith("vae.") for name in source.tensors):
            source = _VaePart(source)
        config = weights.parent / "config.json"
        if config.exists():
            source.config = read_object(config, SMALL)
            source.files = (*source.files, config)
    except BaseException:
        source.close()
        raise
    return source


def _open(path: Path) -> Source:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file or folder; name a safetensors file, a .pt, a .gguf or a folder with one"
        )
    if SHARD.search(path.name) and not path.name.endswith("-00001-of-00001.safetensors"):
        raise InputError(f"{path}: is one shard of several; name the folder {path.parent} instead")
    if INDEX.search(path.name):
        return with_float8(ShardedSafetensors(path))
    if path.suffix == ".safetensors":
        return with_float8(SafetensorsFile(path))
    if path.suffix == GGUF_SUFFIX:
        return GgufFile(path)
    if path.suffix in TORCH_SUFFIXES:
        file = TorchFile(path)
        return ScaledFp8(file) if float8_names(file) else file
    raise InputError(
        f"{path}: files of this kind are not read; name .safetensors, .safetensors.index.json, {GGUF_SUFFIX}, {', '.join(TORCH_SUFFIXES)} or a folder"
    )


class _VaePart(Source):
    """Of a larger model's weights the part under `vae.`, without that prefix."""

    def __init__(self, whole: Source) -> None:
        self._whole = whole
        self.container, self.files = whole.container, whole.files
        self.tensors = {
            name.removeprefix("vae."): info
            for name, info in whole.tensors.items()
            if name.startswith("vae.")
        }
        others = (name for name in whole.tensors if not name.startswith("vae."))
        self.ignored = (*whole.ignored, *others)

    def stored_dtype(self, name: str) -> np.dtype:
        """See `Source.stored_dtype`."""
        return self._whole.stored_dtype(f"vae.{name}")

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        return self._whole.read(f"vae.{name}", rows)

    def close(self) -> None:
        """Close the whole."""
        self._whole.close()
