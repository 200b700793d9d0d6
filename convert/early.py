"""What can fail before the first byte of weights is downloaded: nobody should wait for gigabytes to be told of a missing tokenizer."""

from pathlib import Path

from convert.component import open_components
from convert.description import describe, preset_settings
from convert.schedule import Room
from convert.sources import PARTS, Sources
from qsjax.cache import cache_directory
from qsjax.disk import free_bytes, require_room, shares_disk
from qsjax.errors import InputError
from qsjax.units import shown_bytes

_THEN = "make room, name another place by QSJAX_CACHE, or pass `delete_source=True`"


def check_before_opening(
    sources: Sources, destination: Path, preset: str | None, *, quantized: bool
) -> None:
    """Look at all that does not need a file which can be opened only whole: pickles, GGUF, and LoRAs, whose numbers are looked at.

    Of other safetensors the header is enough, so that nothing is to be done where there are no such files to be downloaded.

    Args:
        sources: of the conversion.
        destination: of it.
        preset: sampling settings that are asked for.
        quantized: the transformer becomes smaller than its file.

    Raises:
        InputError: a tokenizer or the prompt template is absent or unsuitable, or a disk is too small.
        CheckpointError: a file is damaged.
    """
    paths = {part: getattr(sources, part) for part in PARTS}
    whole = {
        part: path
        for part, path in paths.items()
        if path is not None and sources.files.missing(path) and not sources.files.has_header(path)
    }
    loras = {lora.path for lora in sources.lora or () if sources.files.missing(lora.path)}
    if not whole and not loras:
        return
    sources.files.require_here([*whole.values(), *loras])
    if preset is not None:
        preset_settings(preset)
    if whole.keys() != {part for part, path in paths.items() if path is not None}:
        others = sources.without(whole)
        with open_components(others, None) as components:
            describe(others, components, preset if "dit" in components else None)
    written = sum(
        sources.files.size(path)
        for part, path in whole.items()
        if not (quantized and part == "transformer")
    )
    downloaded = sum(map(sources.files.missing, {*whole.values(), *loras}))
    require_room_for(destination, Room(written, downloaded, written + downloaded))


def require_room_for(destination: Path, needed: Room) -> None:
    """Refuse a conversion for which there is no room, in the cache and where the checkpoint is to be.

    Args:
        destination: of the checkpoint.
        needed: bytes.

    Raises:
        InputError: says all sizes.
    """
    cache = cache_directory()
    if not needed.downloaded or not shares_disk(cache, destination):
        require_room(destination, needed.written)
        require_room(cache, needed.downloaded, "the download ", _THEN)
        return
    free = free_bytes(destination)
    if free is not None and free < needed.together:
        raise InputError(
            f"{destination}: needs {shown_bytes(needed.written)}, and what is downloaded to the same disk "
            f"{shown_bytes(needed.downloaded)} at a time, together {shown_bytes(needed.together)}; {shown_bytes(free)} are free; {_THEN}"
        )
