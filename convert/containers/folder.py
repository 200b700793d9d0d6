"""Which file of a folder holds the weights: exactly one answer, or the candidates."""

import re
from pathlib import Path

from convert.containers.listing import first_few
from qsjax.config import nearest
from qsjax.errors import InputError

INDEX = re.compile(r"\.safetensors\.index(\.[\w-]+)?\.json$")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
GGUF_SUFFIX = ".gguf"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")

# Where a component lies in a folder of several: diffusers' names and Tencent's.
_SUBFOLDERS = {
    "dit": ("transformer", "transformers"),
    "vae": ("vae",),
    "llama": ("text_encoder",),
    "clip": ("text_encoder_2",),
}


def find_weights(folder: Path, component: str) -> Path:
    """The weights of `component` in a folder: its index, its safetensors file, its `.gguf` or its `.pt`.

    GGUF and pickles count only where there is no safetensors file. A folder without weights of its own is searched
    for the component's customary subfolder.

    Raises:
        InputError: nothing there, or several candidates; the message lists them.
    """
    if component not in _SUBFOLDERS:
        raise InputError(f"component {component!r}: {nearest(component, _SUBFOLDERS)}")
    candidates = _candidates(folder)
    if not candidates:
        for name in _SUBFOLDERS[component]:
            candidates += _candidates(folder / name)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = first_few(str(path.relative_to(folder)) for path in candidates)
        raise InputError(
            f"{folder}: holds several files that could be the {component} weights: {names}; name one of them"
        )
    raise InputError(
        f"{folder}: holds no {component} weights (safetensors, .gguf or .pt, here or in {' or '.join(_SUBFOLDERS[component])}/); name the folder or file that does"
    )


def _candidates(folder: Path) -> list[Path]:
    files = sorted(
        (path for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")),
        key=lambda path: path.name,
    )
    names = {path.name for path in files}
    indexed = [path for path in files if INDEX.search(path.name)]
    single = [p for p in files if p.suffix == ".safetensors" and not SHARD.search(p.name)]
    if indexed or single:
        return indexed + single
    shards = [path.name for path in files if SHARD.search(path.name)]
    if shards:
        raise InputError(
            f"{folder}: holds shards ({first_few(shards, 2)}) without their .safetensors.index.json; download the index too"
        )
    if any(name.endswith(".bin.index.json") for name in names):
        raise InputError(
            f"{folder}: holds sharded pickles, which are not read; get the safetensors form of the model"
        )
    return [
        path
        for path in files
        if path.suffix in (GGUF_SUFFIX, *TORCH_SUFFIXES) and not _is_map(path.name, names)
    ]


def _is_map(name: str, names: set[str]) -> bool:
    """Whether a file is the map of scales of another one, not weights itself."""
    stem, _, suffix = name.rpartition("_map.")
    return bool(stem) and f"{stem}.{suffix}" in names
