"""What is asked for: a LoRA file and how strongly it acts."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.containers.listing import first_few
from qsjax.errors import InputError
from qsjax.untrusted import Between, shown

_STRENGTHS = Between(-100.0, 100.0)
SUFFIX = ".safetensors"
LoraLike = str | os.PathLike[str] | tuple[str | os.PathLike[str], float | int]
"""FILE, "FILE:STRENGTH", or (FILE, STRENGTH)."""


@dataclass(frozen=True)
class Lora:
    """A LoRA file to merge.

    Attributes:
        path: a .safetensors file, or a folder with one; of the hub the file.
        strength: times the change that was trained; 1 is as it was, 0 none, below 0 away from it.
    """

    path: Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength) or self.strength not in _STRENGTHS:
            raise InputError(
                f"{self.path}: `lora` has the strength {self.strength:g}; give a number from {_STRENGTHS}"
            )


def parse(given: LoraLike) -> tuple[str, float]:
    """The address and the strength of FILE[:STRENGTH], or of a pair.

    The last colon begins the strength, unless a file has all of it for its name.

    Raises:
        InputError: what follows the colon is no number.
    """
    if isinstance(given, tuple):
        return os.fspath(given[0]), float(given[1])
    text = os.fspath(given)
    address, colon, number = text.rpartition(":")
    if not colon or (address == "hf" and number.startswith("/")) or os.path.exists(text):
        return text, 1.0
    try:
        return address, float(number)
    except ValueError as error:
        raise InputError(
            f"`lora`: {shown(number)} after the colon of {shown(text, 200)} is no strength; give FILE or FILE:STRENGTH, as in a.safetensors:0.8"
        ) from error


def only_file(names: Iterable[str], place: str) -> str:
    """Of the names in a folder the one of its LoRA.

    Args:
        names: of the files in it.
        place: the folder, for the message.

    Raises:
        InputError: it has none, or several.
    """
    files = sorted(name for name in names if name.endswith(SUFFIX))
    if len(files) != 1:
        raise InputError(
            f"{place}: a LoRA is one {SUFFIX} file, and this folder has {first_few(files) or 'none'}; name the file"
        )
    return files[0]


def require_suffix(name: str, place: str) -> None:
    """Refuse another kind of file by its name.

    Raises:
        InputError: it is one.
    """
    if not name.endswith(SUFFIX):
        raise InputError(f"{place}: LoRAs are read from {SUFFIX} files only; save it as one")


def one_or_several(given: LoraLike | Sequence[LoraLike]) -> tuple[LoraLike, ...]:
    """A single file, or a list of them, as a tuple; a pair of a path and a number is one file."""
    if isinstance(given, str | os.PathLike):
        return (given,)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], int | float):
        return ((given[0], float(given[1])),)
    return tuple(given)
