"""Which file of a folder holds the weights: exactly one answer, or the candidates."""

import re
from collections.abc import Collection, Iterable
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
    """The weights of `component` in a folder on disk, as `choose_weights` finds them.

    Raises:
        InputError: nothing there, or several candidates; the message lists them.
    """
    names = [
        path.relative_to(folder).as_posix()
        for place in (folder, *(folder / name for name in _subfolders(component)))
        for path in place.glob("*")
        if path.is_file()
    ]
    return folder / choose_weights(names, component, str(folder))


def choose_weights(names: Iterable[str], component: str, place: str) -> str:
    """Which of a folder's files holds the weights of `component`: its index, its safetensors file, its `.gguf` or its `.pt`.

    GGUF and pickles count only where there is no safetensors file. A folder without weights of its own is searched
    for the component's customary subfolder.

    Args:
        names: of files, "transformer/config.json" for one in a folder of the folder.
        component: "dit", "vae", "llama" or "clip".
        place: the folder, for messages.

    Raises:
        InputError: nothing there, or several candidates; the message lists them.
    """
    subfolders = _subfolders(component)
    files = sorted(name for name in names if not name.rpartition("/")[2].startswith("."))
    candidates = _candidates(place, files, "")
    if not candidates:
        for name in subfolders:
            candidates += _candidates(place, files, f"{name}/")
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise InputError(
            f"{place}: holds several files that could be the {component} weights: {first_few(candidates)}; name one of them"
        )
    raise InputError(
        f"{place}: holds no {component} weights (safetensors, .gguf or .pt, here or in {' or '.join(subfolders)}/); name the folder or file that does"
    )


def weights_in(names: Iterable[str]) -> list[str]:
    """The files of weights among some names; of shards, the index."""
    return sorted(
        name
        for name in names
        if INDEX.search(name)
        or (
            name.endswith((".safetensors", GGUF_SUFFIX, *TORCH_SUFFIXES)) and not SHARD.search(name)
        )
    )


def require_readable(name: str) -> None:
    """Refuse a file of weights by its name: a kind that is not read, or one shard of several.

    Raises:
        InputError: says what to name instead.
    """
    if SHARD.search(name) and not name.endswith("-00001-of-00001.safetensors"):
        raise InputError(f"{name}: is one shard of several; name its folder instead")
    if not INDEX.search(name) and not name.endswith((".safetensors", GGUF_SUFFIX, *TORCH_SUFFIXES)):
        raise InputError(
            f"{name}: files of this kind are not read; name .safetensors, .safetensors.index.json, {GGUF_SUFFIX}, {', '.join(TORCH_SUFFIXES)} or a folder"
        )


def _subfolders(component: str) -> tuple[str, ...]:
    if component not in _SUBFOLDERS:
        raise InputError(f"component {component!r}: {nearest(component, _SUBFOLDERS)}")
    return _SUBFOLDERS[component]


def _candidates(place: str, files: Iterable[str], begin: str) -> list[str]:
    """Those of the folder `begin`, "" or "NAME/"."""
    names = [name for name in files if name.startswith(begin) and "/" not in name[len(begin) :]]
    indexed = [name for name in names if INDEX.search(name)]
    single = [name for name in names if name.endswith(".safetensors") and not SHARD.search(name)]
    if indexed or single:
        return indexed + single
    shards = [name for name in names if SHARD.search(name)]
    if shards:
        raise InputError(
            f"{place}: holds shards ({first_few(shards, 2)}) without their .safetensors.index.json; download the index too"
        )
    if any(name.endswith(".bin.index.json") for name in names):
        raise InputError(
            f"{place}: holds sharded pickles, which are not read; get the safetensors form of the model"
        )
    return [
        name
        for name in names
        if name.endswith((GGUF_SUFFIX, *TORCH_SUFFIXES)) and not _is_map(name, names)
    ]


def _is_map(name: str, names: Collection[str]) -> bool:
    """Whether a file is the map of scales of another one, not weights itself."""
    stem, _, suffix = name.rpartition("_map.")
    return bool(stem) and f"{stem}.{suffix}" in names
