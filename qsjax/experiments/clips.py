"""Which captions and which noise an experiment takes: for its clips, and for its calibrations."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qsjax.config import nearest
from qsjax.errors import InputError
from qsjax.tiny.scenes import Scene
from qsjax.tiny.streams import CALIBRATION, HELD_OUT, STREAMS, disjoint, held_out

EVALUATED = ("choice", "report")
"""Streams whose captions evaluate."""
SEEDS_APART = 1000
"""Between the first noise of two calibrations: those of no two seeds share any."""


@dataclass(frozen=True)
class Clips:
    """Captions and noise of an experiment.

    Attributes:
        scenes: of the captions.
        noise: clip i has that of `noise + i`.
        stream: that they are of; None for those of older tables.
        first: without a stream, number of the first caption.
    """

    scenes: tuple[Scene, ...]
    noise: int
    stream: str | None
    first: int

    @classmethod
    def take(cls, count: int, *, stream: str | None, seed: int, first: int) -> "Clips":
        """The clips of a stream, or captions of `HELD_OUT` from `first` on with the noise of `seed`.

        Raises:
            InputError: no such stream, or one together with another first caption; no clips.
        """
        if count < 1 or first < 0:
            raise InputError(
                f"{count} captions from number {first} on: at least one is needed, and captions count from 0"
            )
        if stream is None:
            return cls(tuple(held_out(HELD_OUT, first + count)[first:]), seed, None, first)
        if stream not in EVALUATED:
            raise InputError(f"no stream {stream!r}; {nearest(stream, EVALUATED)}")
        if first:
            raise InputError(f"the stream {stream} begins at its first caption; leave one out")
        return cls(tuple(disjoint(stream, count)), STREAMS[stream].noise, stream, 0)

    @property
    def captions(self) -> list[str]:
        """One a clip."""
        return [scene.caption for scene in self.scenes]

    def facts(self) -> dict[str, Any]:
        """Plain data that says which clips these are, of others than those of the oldest tables."""
        if self.stream is None:
            return {"first_caption": self.first} if self.first else {}
        # If the streams ever change, stored rows are of other clips.
        text = json.dumps([self.captions, self.noise])
        return {"stream": self.stream, "clips": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def calibration_captions(self, count: int, seed: int) -> list[str]:
        """Captions of a calibration, all different, that no evaluation has; those of a stream are of this seed alone.

        Raises:
            InputError: the stream of calibrations does not have so many.
        """
        if self.stream is None:
            return calibration_captions(count, avoid=self.captions)
        return [scene.caption for scene in disjoint("calibration", count, first=seed * count)]

    def calibration_noise(self, seed: int) -> int:
        """The first seed of a calibration's noise; of its moments and their order, too."""
        return seed if self.stream is None else STREAMS["calibration"].noise + SEEDS_APART * seed


def calibration_captions(count: int, *, avoid: Sequence[str]) -> list[str]:
    """Captions of the calibration's stream, none of them among those to avoid and none twice."""
    captions: dict[str, None] = {}
    length = count
    while len(captions) < count:
        stream = (scene.caption for scene in held_out(CALIBRATION, length))
        captions = dict.fromkeys(caption for caption in stream if caption not in avoid)
        length *= 2
    return list(captions)[:count]
