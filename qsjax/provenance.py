"""How a video was made: kept in its file as JSON, read back from files that anyone may have written."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pallas_kernels import Kernels
from qsjax.config import from_mapping, nearest, to_mapping
from qsjax.errors import CheckpointError, InputError
from qsjax.settings import Settings
from qsjax.untrusted import Between, parse_object, shown
from qsjax.untrusted.files import shown_path
from qsjax.untrusted.mp4 import read_comment
from qsjax.versions import SAMPLING, versions

FORMAT, FORMAT_VERSION = "qsjax video", 1
LONGEST_PROMPT = 1 << 16
"""Characters of a prompt; a text encoder reads a few hundred tokens."""
_DTYPES = ("bfloat16", "float16", "float32")
_DIGEST = re.compile("[0-9a-f]{64}")
_MOST_VERSIONS, _LONGEST_NAME = 64, 200
_SEEDS = 2**64
_NAMES = ("recipe", "model", "device", "versions")
"""Fields that name something, or say where the video was made: what else they stand for is in the others."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What makes a video again, bit for bit, on the same machine with the same libraries.

    Attributes:
        prompt: its text.
        seed: of the noise, 0 to 2^64 - 1.
        settings: that were used; the negative prompt too.
        recipe: the sampling recipe that was named, for people: what it says is in the settings.
        model: name of the checkpoint's folder, for people.
        checkpoint: sha256 of what the models compute with (`Manifest.content_digest`).
        dtype: of weights and products.
        text_storage: how the text encoders were held.
        encoded: the prompt came encoded, from a file.
        devices: that shared the transformer.
        device: their kind.
        kernels: implementations that were asked for.
        versions: of the libraries; None of those that were not there.
    """

    prompt: str
    seed: int
    settings: Settings
    recipe: str = ""
    model: str = ""
    checkpoint: str
    dtype: str
    text_storage: str | None = None
    encoded: bool = False
    devices: Annotated[int, Between(1, 65_536)] = 1
    device: str = ""
    kernels: Kernels = field(default_factory=Kernels)
    versions: Mapping[str, str | None] = field(default_factory=lambda: versions(SAMPLING))

    def __post_init__(self) -> None:
        for name in ("prompt", "recipe", "model", "device"):
            longest = LONGEST_PROMPT if name == "prompt" else _LONGEST_NAME
            if len(getattr(self, name)) > longest:
                raise InputError(f"{name}: has more than {longest} characters; give a shorter one")
        for name, known in (("dtype", _DTYPES), ("text_storage", (None, "int8"))):
            if (word := getattr(self, name)) not in known:
                raise InputError(f"no {name} {shown(word)}; {nearest(str(word), filter(None, known))}")  # fmt: skip
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"seed {shown(self.seed)}: must be from 0 to {_SEEDS - 1}")
        if self.devices not in Between(1, 65_536):
            raise InputError(f"devices is {shown(self.devices)}; give a number from 1 to 65,536")
        if not _DIGEST.fullmatch(self.checkpoint):
            raise InputError(f"checkpoint {shown(self.checkpoint)}: is no sha256; give one")

    def to_json(self) -> str:
        """The text that is kept in a file."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        return json.dumps(head | to_mapping(self), ensure_ascii=False)

    @property
    def identity(self) -> str:
        """sha256 of what decides about the video's bits, but for machine and libraries."""
        plain = {name: value for name, value in to_mapping(self).items() if name not in _NAMES}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def differences(self, here: "Provenance") -> list[str]:
        """Why another run of the same settings may give other bits, one clause each.

        Args:
            here: of the run that is to repeat this one.
        """
        found = []
        if self.checkpoint != here.checkpoint:
            name = f" ({shown(self.model)})" if self.model else ""
            found.append(
                f"another checkpoint{name}, sha256 {self.checkpoint[:12]}, here {here.checkpoint[:12]}"
            )
        for name in ("dtype", "text_storage", "encoded", "devices", "device", "kernels"):
            made, now = getattr(self, name), getattr(here, name)
            if made != now:
                found.append(f"{name.replace('_', ' ')} {_text(made)}, here {_text(now)}")
        for library in sorted(self.versions.keys() | here.versions.keys()):
            made, now = self.versions.get(library), here.versions.get(library)
            if made != now:
                found.append(f"{shown(library)} {_text(made)}, here {_text(now)}")
        return found


def read_provenance(path: str | os.PathLike[str]) -> Provenance:
    """What the file of a video says of its making.

    Raises:
        InputError: it is no mp4 file, says nothing that qsjax has written, is of a newer qsjax, or says what cannot be.
    """
    source = shown_path(Path(path))
    text = read_comment(path)
    if text is None or not text.startswith("{"):
        raise InputError(
            f"{source}: does not say how it was made; name a video that this version of qsjax or a newer one wrote"
        )
    try:
        values = parse_object(text.encode(), f"{source}: what it says of its making")
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if values.pop("format", None) != FORMAT:
        raise InputError(f"{source}: was not written by qsjax; name a video that it wrote")
    version = values.pop("format_version", None)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"{source}: has no format version; name a video that qsjax wrote")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{source}: has format version {shown(version)}, this qsjax reads up to {FORMAT_VERSION}; upgrade qsjax"
        )
    libraries = _libraries(values.pop("versions", {}), source)
    try:
        return replace(
            from_mapping(Provenance, values, source="what it says of its making"),
            versions=libraries,
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _libraries(values: object, source: str) -> dict[str, str | None]:
    """Library -> version, as a file has them."""
    if isinstance(values, dict) and len(values) <= _MOST_VERSIONS:
        words = [*values, *(value for value in values.values() if value is not None)]
        if all(isinstance(word, str) and len(word) <= _LONGEST_NAME for word in words):
            return values
    raise InputError(f"{source}: has no table of versions; name a video that qsjax wrote")


def _text(value: object) -> str:
    """A value in a message."""
    if isinstance(value, Kernels):
        value = {name: word for name, word in to_mapping(value).items() if word != "auto"}
    return "none" if not value else shown(value)
