"""Clips: scenes drawn at any size, anti-aliased, with their captions."""

import numpy as np
from jaxtyping import Float

from qsjax.errors import InputError
from qsjax.tiny.scenes import COLORS, DIRECTIONS, GROWTH, TONES, TWO_OBJECTS, Object, Scene, scene

# A shape that moves around goes clockwise along three quarters of a circle.
_SWEEP = 1.5 * np.pi
# Outlines are this many pixels wide: sharper ones flicker on the pixel grid when they move.
_EDGE = 1.5


def render(
    what: Scene, frames: int, height: int, width: int
) -> Float[np.ndarray, "3 frames height width"]:
    """Draw a scene, anti-aliased; float32 in [-1, 1]. The same paths are walked whatever the number of frames.

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
    video = np.repeat(_background(what, x / side, y / side)[:, None], frames, axis=1)
    time = np.linspace(0, 1, frames) if frames > 1 else np.full(1, 0.5)
    for item in what.objects:
        center, size = _path(item, time)
        dx = x[None] - (center[:, 0] * width)[:, None, None].astype(np.float32)
        dy = y[None] - (center[:, 1] * height)[:, None, None].astype(np.float32)
        radius = (size * side)[:, None, None].astype(np.float32)
        cover = np.clip(0.5 - _distance(item.shape, dx, dy, radius) / _EDGE, 0.0, 1.0)[None]
        paint = np.array(COLORS[item.color], np.float32)[:, None, None, None]
        video = video * (1 - cover) + paint * cover
    return video.astype(np.float32)


def clip(
    seed: int,
    index: int,
    frames: int = 33,
    height: int = 64,
    width: int = 64,
    *,
    two_objects: float = TWO_OBJECTS,
) -> tuple[Float[np.ndarray, "3 frames height width"], str]:
    """The clip with a number, and its caption; `two_objects` as in `scene`."""
    what = scene(seed, index, two_objects=two_objects)
    return render(what, frames, height, width), what.caption


def _path(item: Object, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre [frames, 2] (x, y) and radius [frames], `time` running from 0 to 1."""
    center = np.tile(np.array(item.center), (len(time), 1))
    radius = np.full(len(time), item.radius)
    if item.motion == "grows":
        radius = item.radius * (GROWTH[0] + (GROWTH[1] - GROWTH[0]) * time)
    elif item.motion == "around":
        angle = item.start + _SWEEP * time
        center = center + item.travel * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        along = np.array(DIRECTIONS[item.motion])
        center = center + item.travel * (time - 0.5)[:, None] * along
    return center, radius


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


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance to the outline in pixels, negative inside (for corners: to the nearer edge line)."""
    if shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - np.float32(0.88) * radius
    # An upright triangle of three half planes around its centroid, inscribed circle 0.62 of the radius.
    slope = np.float32(np.sqrt(3) / 2) * np.abs(dx) - np.float32(0.5) * dy
    return np.maximum(slope, dy) - np.float32(0.62) * radius
