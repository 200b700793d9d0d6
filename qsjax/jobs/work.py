"""Encodings and latents on disk until their video is there."""

import hashlib
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from qsjax.disk import replacing, writing
from qsjax.errors import InputError
from qsjax.jobs.planning import Job
from qsjax.text import EncodedPrompt, load_prompts, save_prompts
from qsjax.untrusted.arrays import map_array

FOLDER = ".qsjax"
"""Inside the folder of all videos; no video's name begins with a dot."""
_NAME = re.compile(r"[0-9a-f]{64}\.(safetensors|npy)(\.tmp)?")


@dataclass(frozen=True)
class Work:
    """The folder of what is not finished; only files with names of our own are ever deleted.

    Attributes:
        folder: its place.
    """

    folder: Path

    def make(self) -> None:
        """Make it.

        Raises:
            InputError: something else has its name, or it cannot be written.
        """
        with writing(self.folder):
            if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
                raise InputError(f"{self.folder}: is in the way and no folder of ours; move it")
            self.folder.mkdir(parents=True, exist_ok=True)

    def encoding(self, job: Job, text: str) -> Path:
        """Where the encoding of a text is, for a job's checkpoint, dtype and libraries."""
        made = job.made
        key = (text, made.checkpoint, made.dtype, made.text_storage, sorted(made.versions.items()))
        return self.folder / f"{_digest(key)}.safetensors"

    def latents(self, job: Job) -> Path:
        """Where the latents of a job are."""
        key = (job.made.identity, sorted(job.made.versions.items()))
        return self.folder / f"{_digest(key)}.npy"

    def texts(self, job: Job) -> tuple[str, ...]:
        """The texts that a job needs encoded: the prompt, and the negative prompt if it is used."""
        return (job.made.prompt,) if job.negative is None else (job.made.prompt, job.negative)

    def files(self, job: Job) -> set[Path]:
        """All files of a job."""
        return {self.latents(job), *(self.encoding(job, text) for text in self.texts(job))}

    def save_encoding(self, job: Job, text: str, encoded: EncodedPrompt) -> None:
        """Keep an encoding.

        Raises:
            DiskError: the disk refuses.
        """
        save_prompts(self.encoding(job, text), encoded, [text])

    def load_encoding(self, job: Job, text: str) -> EncodedPrompt:
        """An encoding that was kept.

        Raises:
            InputError: it is damaged.
        """
        return load_prompts(self.encoding(job, text))

    def save_latents(self, job: Job, latents: Float[np.ndarray, "1 C T H W"]) -> None:
        """Keep the latents of a job.

        Raises:
            DiskError: the disk refuses.
        """
        with replacing(self.latents(job)) as temporary, temporary.open("wb") as file:
            np.save(file, latents)

    def load_latents(self, job: Job, shape: tuple[int, ...]) -> Float[np.ndarray, "1 C T H W"]:
        """Latents that were kept.

        Raises:
            CheckpointError: they are damaged.
            InputError: they are of another shape.
        """
        path = self.latents(job)
        array = np.array(map_array(path))
        if array.shape != shape or array.dtype != np.float32:
            raise InputError(
                f"{path}: holds {array.dtype} {list(array.shape)}, not float32 {list(shape)}; delete it and do the same again"
            )
        return array

    def keep(self, needed: Collection[Path]) -> None:
        """Delete all of our files but those that are still needed, and the folder if it is empty then.

        Raises:
            DiskError: the disk refuses.
        """
        with writing(self.folder):
            for path in list(self.folder.iterdir()):
                if _NAME.fullmatch(path.name) and path not in needed:
                    path.unlink()
            with suppress(OSError):
                self.folder.rmdir()


def _digest(key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()
