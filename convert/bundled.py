"""The tiny model that ships with the package, as a checkpoint in the user's cache."""

import hashlib
from pathlib import Path

from qsjax.cache import cache_directory
from qsjax.checkpoint import is_finished

_FOLDER = "assets/tiny"


def tiny_model_directory() -> Path:
    """The bundled PyTorch files, in the folder layout of a diffusers pipeline."""
    import qsjax

    return Path(qsjax.__file__).resolve().parent / _FOLDER


def converted_tiny_model() -> Path:
    """The checkpoint of the bundled tiny model, converted if the cache does not hold it yet.

    The cache is `qsjax.cache.cache_directory()`; the entry is named after the bundle's content, so a new bundle is
    converted again. Of several processes that need it at once, one converts it and the others wait.

    Raises:
        InputError: the cache cannot be written, or is full.
    """
    source = tiny_model_directory()
    state = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        state.update(str(path.relative_to(source)).encode())
        state.update(path.read_bytes())
    destination = cache_directory() / f"tiny-{state.hexdigest()[:16]}"
    if not is_finished(destination):
        from convert.sources import Sources  # every later start does without
        from convert.stream import convert

        convert(Sources.find(source), destination, progress=False)
    return destination
