"""The tiny model that ships with the package, as a checkpoint in the user's cache."""

import hashlib
import os
import tempfile
from pathlib import Path

from convert.sources import Sources
from convert.stream import convert
from qsjax.checkpoint import MANIFEST

_FOLDER = "assets/tiny"


def tiny_model_directory() -> Path:
    """The bundled PyTorch files, in the folder layout of a diffusers pipeline."""
    import qsjax

    return Path(qsjax.__file__).resolve().parent / _FOLDER


def converted_tiny_model() -> Path:
    """The checkpoint of the bundled tiny model, converted if the cache does not hold it yet.

    The cache is `$QSJAX_CACHE`, else `$XDG_CACHE_HOME/qsjax`, else `~/.cache/qsjax`; the entry is named
    after the bundle's content, so a new bundle is converted anew.
    """
    source = tiny_model_directory()
    state = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        state.update(str(path.relative_to(source)).encode())
        state.update(path.read_bytes())
    destination = _cache() / f"tiny-{state.hexdigest()[:16]}"
    if not (destination / MANIFEST).is_file():
        convert(Sources.find(source), destination, progress=False)
    return destination


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("QSJAX_CACHE") or Path(home) / "qsjax")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: convert again in each process
        return Path(tempfile.mkdtemp(prefix="qsjax-"))
    return folder
