"""Scenes: one or two coloured shapes move over a quiet background, and a caption says so.

Two shapes move alike, their colours are no neighbours on the wheel, and the one named first is on the left or above.
Which of two motions belongs to which shape, orange beside yellow, and two halves of a frame that have to agree on which of them is the red
one are more than the tiny model learns in a day of CPU time, and a test bed needs captions that are followed.

Endless, and a pure function of (seed, index): the random numbers are raw Philox words, a stream that NumPy
keeps stable between versions, so that a training run can be continued and an evaluation repeated anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qsjax.errors import InputError

# RGB in [-1, 1], in the order of the wheel; saturated, while every background is nearly grey: the checker
# tells objects and background apart by chroma.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, -0.80, -0.80),
    "orange": (0.90, 0.10, -0.90),
    "yellow": (0.90, 0.80, -0.80),
    "green": (-0.75, 0.55, -0.65),
    "cyan": (-0.80, 0.75, 0.85),
    "blue": (-0.75, -0.50, 0.90),
    "purple": (0.55, -0.75, 0.75),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
# What a shape does -> how a caption says it. "around" goes clockwise along three quarters of a circle.
MOTIONS: dict[str, str] = {
    **{direction: f"moves {direction}" for direction in DIRECTIONS},
    "around": "moves around",
    "grows": "grows",
}
TONES: dict[str, float] = {"dark": -0.60, "light": 0.35}
TEXTURES = ("background", "stripes", "gradient")
TWO_OBJECTS = 0.25
"""Fraction of scenes with two objects."""

# Every word that a caption may hold ("an" is read as "a"), in the order of the token ids.
VOCABULARY: tuple[str, ...] = (
    *("a", "and", "over", "moves", "grows", "around"),
    *COLORS,
    *SHAPES,
    *DIRECTIONS,
    *TONES,
    *TEXTURES,
)

GROWTH = (0.6, 1.25)
"""A growing shape's size over its radius, in the first and the last frame."""
# A shape keeps this many radii from the border of its place.
_MARGIN = 1.05


@dataclass(frozen=True, kw_only=True)
class Object:
    """A shape and its way, free of resolution and length; lengths are fractions of the shorter side.

    Attributes:
        color: a key of `COLORS`.
        shape: one of `SHAPES`.
        motion: a key of `MOTIONS`.
        radius: size of the shape (of a growing one, half-way).
        center: (x, y) of the middle of its way, fractions of width and height.
        travel: way of the centre of one that moves straight; radius of the circle of one that moves around.
        start: angle at which a circle begins, radians.
    """

    color: str
    shape: str
    motion: str
    radius: float
    center: tuple[float, float]
    travel: float
    start: float

    @property
    def phrase(self) -> str:
        """Its part of the caption."""
        article = "an" if self.color == "orange" else "a"
        return f"{article} {self.color} {self.shape} {MOTIONS[self.motion]}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What happens in a clip, free of its resolution and length.

    Attributes:
        objects: one or two, of clearly different colours and the same motion, that never meet.
        tone: a key of `TONES`.
        texture: one of `TEXTURES`.
        tint: RGB added to the grey of the background.
        angle: orientation of the texture, radians.
        frequency: stripes per shorter side.
        phase: of the stripes, radians.
        amplitude: of the texture.
    """

    objects: tuple[Object, ...]
    tone: str
    texture: str
    tint: tuple[float, float, float]
    angle: float
    frequency: float
    phase: float
    amplitude: float

    @property
    def caption(self) -> str:
        """The sentence a text encoder sees, made of `VOCABULARY` only."""
        article = "" if self.texture == "stripes" else "a "
        phrases = " and ".join(item.phrase for item in self.objects)
        return f"{phrases} over {article}{self.tone} {self.texture}"


def scene(seed: int, index: int, *, two_objects: float = TWO_OBJECTS) -> Scene:
    """The scene of a number in the stream of `seed`; any non-negative index, any order.

    Args:
        seed: of the stream.
        index: in the stream.
        two_objects: fraction of scenes with two objects.

    Raises:
        InputError: a negative number.
    """
    if seed < 0 or index < 0:
        raise InputError(f"seed {seed}, index {index}: both must be 0 or more")
    draw = iter(uniforms(seed, index, 40).tolist())

    def choose(names: tuple[str, ...]) -> str:
        return names[int(next(draw) * len(names))]

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(draw)

    tone, texture = choose(tuple(TONES)), choose(TEXTURES)
    tint = (between(-0.06, 0.06), between(-0.06, 0.06), between(-0.06, 0.06))
    angle, frequency = between(0.0, np.pi), between(3.0, 5.0)
    phase, amplitude = between(0.0, 2 * np.pi), between(0.07, 0.11)
    two = next(draw) < two_objects
    looks = [(choose(tuple(COLORS)), choose(SHAPES))]
    if two:
        looks.append((choose(_unlike(looks[0][0])), choose(SHAPES)))
    motion = choose(tuple(MOTIONS))
    places = _places(len(looks), motion, next(draw) < 0.5)
    objects = tuple(
        _placed(*look, motion, place, between, small=two)
        for look, place in zip(looks, places, strict=True)
    )
    return Scene(
        objects=objects,
        tone=tone,
        texture=texture,
        tint=tint,
        angle=angle,
        frequency=frequency,
        phase=phase,
        amplitude=amplitude,
    )


def uniforms(seed: int, index: int, count: int) -> np.ndarray:
    """`count` float64 numbers in [0, 1) that depend on nothing but (seed, index)."""
    words = np.random.Philox(key=np.array([seed, index], np.uint64)).random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _unlike(color: str) -> tuple[str, ...]:
    """The colours that are no neighbours of one on the wheel."""
    wheel = list(COLORS)
    here = wheel.index(color)
    return tuple(wheel[(here + step) % len(wheel)] for step in range(2, len(wheel) - 1))


def _places(objects: int, motion: str, coin: bool) -> list[tuple[float, float, float, float]]:
    """A box (x, y, width, height) for each object: the whole frame, or two halves, the left or the upper one first.

    Halves are cut so that straight ways lie along the cut.
    """
    if objects == 1:
        return [(0.0, 0.0, 1.0, 1.0)]
    if motion in ("up", "down") or (motion not in DIRECTIONS and coin):
        return [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)]
    return [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5)]


def _placed(
    color: str,
    shape: str,
    motion: str,
    place: tuple[float, float, float, float],
    between: Callable[[float, float], float],
    *,
    small: bool,
) -> Object:
    """An object whose whole way lies in its place."""
    radius = between(0.14, 0.17) if small else between(0.19, 0.25)
    travel = between(0.32, 0.46)
    orbit, start = between(0.13, 0.17), between(0.0, 2 * np.pi)
    left, top, width, height = place
    widest = _MARGIN * radius * (GROWTH[1] if motion == "grows" else 1.0)
    room = np.array([width / 2 - widest, height / 2 - widest])
    if motion == "around":
        travel = min(orbit, float(room.min()))
        room = room - travel
    elif motion in DIRECTIONS:
        along = np.abs(np.array(DIRECTIONS[motion]))
        travel = min(travel, 2 * float(room @ along))
        room = room - along * travel / 2
    room = np.maximum(room, 0.0)
    center = (
        left + width / 2 + between(-1.0, 1.0) * float(room[0]),
        top + height / 2 + between(-1.0, 1.0) * float(room[1]),
    )
    return Object(
        color=color,
        shape=shape,
        motion=motion,
        radius=radius,
        center=center,
        travel=travel,
        start=start,
    )
