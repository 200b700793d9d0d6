"""Opening any container as a Source."""

import os
from pathlib import Path

import numpy as np

from convert.containers.files import ON_DISK, Files
from convert.containers.float8 import float8_names
from convert.containers.float8_safetensors import with_float8
from convert.containers.folder import (
    GGUF_SUFFIX,
    INDEX,
    TORCH_SUFFIXES,
    find_weights,
    require_readable,
)
from convert.containers.gguf_file import GgufFile
from convert.containers.gguf_types import require_gguf
from convert.containers.scaled_fp8 import ScaledFp8, scales_beside
from convert.containers.sharded import ShardedSafetensors
from convert.containers.source import Source
from convert.containers.torch_file import TorchFile, require_torch
from qsjax.errors import InputError
from qsjax.untrusted import read_object
from qsjax.untrusted.files import SMALL


def open_source(path: str | os.PathLike[str], component: str, files: Files = ON_DISK) -> Source:
    """Open the weights of a component for reading tensor by tensor.

    Args:
        path: a safetensors file, a shard index, a `.pt`, a `.gguf`, or a folder that holds one of these.
        component: "dit", "vae", "llama" or "clip"; decides where a folder of several components is
            searched, and for "vae" that a leading `vae.` is stripped from the names.
        files: where the files are.

    Returns:
        The open source; close it, or use it as a context manager. Float8 weights show as what they stand for, bfloat16 or float32;
        so do GGUF's, in float32.

    Raises:
        InputError: nothing usable is there, or more than one thing; or a `.pt` and no PyTorch, a `.gguf` and no gguf.
        CheckpointError: the files are damaged or contradict each other.
    """
    place = Path(path)
    weights = find_weights(place, component) if place.is_dir() else place
    source = _open(weights, files)
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


def require_reader(path: Path) -> None:
    """Refuse a kind of file that needs a package which is absent, by its name alone: it need not be here yet.

    Raises:
        InputError: says which package, and how it is installed.
    """
    if path.suffix in TORCH_SUFFIXES:
        require_torch(path)
    elif path.suffix == GGUF_SUFFIX:
        require_gguf(path)


def _open(path: Path, files: Files) -> Source:
    if not files.is_there(path):
        raise InputError(
            f"{path}: no such file or folder; name a safetensors file, a .pt, a .gguf or a folder with one"
        )
    require_readable(str(path))
    require_reader(path)
    if INDEX.search(path.name):
        return with_float8(ShardedSafetensors(path, files))
    if path.suffix == GGUF_SUFFIX:
        files.fetch(path)
        return GgufFile(path)
    if path.suffix in TORCH_SUFFIXES:
        for part in (path, scales_beside(path)):
            files.fetch(part)
        file = TorchFile(path)
        return ScaledFp8(file) if float8_names(file) else file
    return with_float8(files.open_safetensors(path))


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

    def files_of(self, name: str) -> tuple[Path, ...]:
        """See `Source.files_of`."""
        return self._whole.files_of(f"vae.{name}")

    def close(self) -> None:
        """Close the whole."""
        self._whole.close()
