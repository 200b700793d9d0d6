"""Streams of scenes, each the scenes of one seed: what training sees, calibration and evaluation do not.

What is measured on captions that something was chosen on is too good. So calibration, choices and reported figures each have
captions and noise of their own, `STREAMS`: no caption and no seed of noise occurs in two of them.
"""

from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

from qsjax.errors import InputError
from qsjax.tiny.scenes import Scene, scene

FIT, TRAIN_VAE, TRAIN_DIT, TRAIN_DISTIL = 12345, 1, 2, 3
"""Of training: fitting the latent space, and the training of each part."""
CALIBRATION = 98
"""Of captions that calibrate."""
HELD_OUT = 99
"""Of captions that evaluate. The first 260 have chosen settings: of quantization (0 to 47), of sparse steps (0 to 31, 220 to 257)."""
REPORT = 97
"""Of captions that have chosen nothing and are for reported figures alone."""


class Stream(NamedTuple):
    """Captions and noise for one purpose.

    Attributes:
        scenes: seed of its scenes.
        head: number of its first scenes, whose captions later streams leave out; it has no others, None for no end.
        noise: seed of the noise of its first clip; clip i has that of `noise + i`.
    """

    scenes: int
    head: int | None
    noise: int


STREAMS = {
    "calibration": Stream(CALIBRATION, 128, 0),
    "choice": Stream(HELD_OUT, 260, 1_000_000),
    "report": Stream(REPORT, None, 2_000_000),
}
"""In the order in which they take captions: each leaves out those of the streams before it."""


def held_out(seed: int, count: int) -> list[Scene]:
    """The first scenes of a stream that no training sees."""
    return [scene(seed, index) for index in range(count)]


def disjoint(name: str, count: int, *, first: int = 0) -> list[Scene]:
    """Scenes of one of `STREAMS`; their captions are all different, and occur in none of the streams before it.

    Args:
        name: "calibration", "choice" or "report".
        count: number of scenes.
        first: number of scenes to leave out at the beginning.

    Raises:
        InputError: a stream with an end has no more captions.
    """
    found = list(islice(_unused(name), first, first + count))
    if len(found) < count:
        raise InputError(
            f"the stream {name} has {first + len(found)} captions, and {first + count} are needed; ask for fewer"
        )
    return found


def _unused(name: str) -> Iterator[Scene]:
    """Scenes whose captions no earlier stream and no earlier scene has."""
    seen: set[str] = set()
    for other, stream in STREAMS.items():
        if other == name:
            break
        seen |= {one.caption for one in _head(stream)}
    for one in _head(STREAMS[name]):
        if one.caption not in seen:
            seen.add(one.caption)
            yield one


def _head(stream: Stream) -> Iterator[Scene]:
    numbers = count() if stream.head is None else range(stream.head)
    return (scene(stream.scenes, index) for index in numbers)
