"""Procedural captioned clips: one coloured shape moves over a quiet background.

Endless, and a pure function of (seed, index): the random numbers are raw Philox words, a stream that NumPy
keeps stable between versions, so that a training run can be continued and an evaluation repeated anywhere.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from qsjax.errors import InputError

# RGB in [-1, 1]; saturated, while every background is nearly grey: the checker tells the two apart by chroma.
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
TONES: dict[str, float] = {"dark": -0.60, "light": 0.35}
TEXTURES = ("background", "stripes", "gradient")

# Every word that a caption may hold ("an" is read as "a"), in the order of the token ids; the words at the end
# are not spoken yet.
VOCABULARY: tuple[str, ...] = (
    *("a", "over", "moves"),
    *COLORS,
    *SHAPES,
    *DIRECTIONS,
    *TONES,
    *TEXTURES,
    *("and", "grows", "shrinks", "around", "checks", "large", "small", "slowly", "quickly", "in"),
    *("front", "of", "behind", "the", "white", "pink", "star", "ring"),
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What happens in a clip, free of its resolution and length.

    Attributes:
        color: a key of `COLORS`.
        shape: one of `SHAPES`.
        direction: a key of `DIRECTIONS`.
        tone: a key of `TONES`.
        texture: one of `TEXTURES`.
        radius: size of the shape as a fraction of the shorter side.
        travel: way of the centre from the first to the last frame, as a fraction of its axis.
        offset: where the path lies, across and along it, each in [-1, 1] of the room there is.
        tint: RGB added to the grey of the background.
        angle: orientation of the texture, radians.
        frequency: stripes per shorter side.
        phase: of the stripes, radians.
        amplitude: of the texture.
    """

    color: str
    shape: str
    direction: str
    tone: str
    texture: str
    radius: float
    travel: float
    offset: tuple[float, float]
    tint: tuple[float, float, float]
    angle: float
    frequency: float
    phase: float
    amplitude: float

    @property
    def caption(self) -> str:
        """The sentence a text encoder sees, made of `VOCABULARY` only."""
        return _caption(self.color, self.shape, self.direction, self.tone, self.texture)


def scene(seed: int, index: int) -> Scene:
    """The scene of a number in the stream of `seed`; any non-negative index, any order."""
    if seed < 0 or index < 0:
        raise InputError(f"seed {seed}, index {index}: both must be 0 or more")
    words = np.random.Philox(key=np.array([seed, index], np.uint64)).random_raw(20)
    uniform = ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
    draw = iter(uniform)

    def choose(names: tuple[str, ...]) -> str:
        return names[int(next(draw) * len(names))]

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(draw)

    return Scene(
        color=choose(tuple(COLORS)),
        shape=choose(SHAPES),
        direction=choose(tuple(DIRECTIONS)),
        tone=choose(tuple(TONES)),
        texture=choose(TEXTURES),
        radius=between(0.19, 0.25),
        travel=between(0.32, 0.46),
        offset=(between(-1.0, 1.0), between(-1.0, 1.0)),
        tint=(between(-0.06, 0.06), between(-0.06, 0.06), between(-0.06, 0.06)),
        angle=between(0.0, np.pi),
        frequency=between(3.0, 5.0),
        phase=between(0.0, 2 * np.pi),
        amplitude=between(0.07, 0.11),
    )


def render(
    what: Scene, frames: int, height: int, width: int
) -> Float[np.ndarray, "3 frames height width"]:
    """Draw a scene, anti-aliased; float32 in [-1, 1]. The same path is walked whatever the number of frames.

    Raises:
        InputError: a size below 1.
    """
    if min(frames, height, width) < 1:
        raise InputError(
            f"cannot draw {frames} frames of {height}x{width}; every size must be 1 or more"
        )
    side = min(height, width)
    y = (np.arange(height, dtype=np.float32) + 0.5)[:, None]
    x = (np.arange(width, dtype=np.float32) + 0.5)[None, :]
    ground = _background(what, x / side, y / side)

    time = (
        np.linspace(-0.5, 0.5, frames, dtype=np.float32) if frames > 1 else np.zeros(1, np.float32)
    )
    along = np.array(DIRECTIONS[what.direction], np.float32)
    half = 0.5 - 0.5 * what.travel - 1.05 * what.radius  # room beside the path, on its axis
    across = 0.5 - 1.05 * what.radius
    shift = np.abs(along) * what.offset[0] * max(half, 0.0)
    shift = shift + (1 - np.abs(along)) * what.offset[1] * across
    path = 0.5 + shift[None] + time[:, None] * what.travel * along[None]
    center = path * np.array([width, height], np.float32)
    dx = x[None] - center[:, 0, None, None]
    dy = y[None] - center[:, 1, None, None]
    cover = np.clip(0.5 - _distance(what.shape, dx, dy, what.radius * side), 0.0, 1.0)
    paint = np.array(COLORS[what.color], np.float32)[:, None, None, None]
    return (ground[:, None] * (1 - cover)[None] + paint * cover[None]).astype(np.float32)


def clip(
    seed: int, index: int, frames: int = 17, height: int = 64, width: int = 64
) -> tuple[Float[np.ndarray, "3 frames height width"], str]:
    """The clip with a number, and its caption."""
    what = scene(seed, index)
    return render(what, frames, height, width), what.caption


def all_captions() -> list[str]:
    """Every caption that a scene can have, in a fixed order."""
    choices = itertools.product(COLORS, SHAPES, DIRECTIONS, TONES, TEXTURES)
    return [_caption(*choice) for choice in choices]


def _caption(color: str, shape: str, direction: str, tone: str, texture: str) -> str:
    article = "" if texture == "stripes" else "a "
    return f"{'an' if color == 'orange' else 'a'} {color} {shape} moves {direction} over {article}{tone} {texture}"


def _background(what: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    position = (x * np.cos(what.angle) + y * np.sin(what.angle)).astype(np.float32)
    if what.texture == "stripes":
        pattern = np.sin(2 * np.pi * what.frequency * position + what.phase)
    elif what.texture == "gradient":
        pattern = 2.0 * (position - position.mean())
    else:
        pattern = np.zeros_like(position)
    grey = TONES[what.tone] + what.amplitude * pattern
    return grey[None] + np.array(what.tint, np.float32)[:, None, None]


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to the outline in pixels, negative inside (for corners: to the nearer edge line)."""
    if shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - np.float32(radius)
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - np.float32(0.88 * radius)
    # An upright triangle of three half planes around its centroid, inscribed circle 0.62 of the radius.
    slope = np.float32(np.sqrt(3) / 2) * np.abs(dx) - np.float32(0.5) * dy
    return np.maximum(slope, dy) - np.float32(0.62 * radius)
