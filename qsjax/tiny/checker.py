"""Reads colour, shape and direction back from a clip, so that samples are scored without a viewer.

Works on float video in [-1, 1]. The shape is what has chroma: backgrounds of `qsjax.tiny.data` are nearly grey.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qsjax.tiny.data import COLORS, DIRECTIONS, SHAPES, Scene

# Area over bounding box: square 1, circle pi/4 = 0.79, triangle 0.5; the cuts lie half-way.
_CIRCLE_ABOVE, _SQUARE_ABOVE = 0.645, 0.89
_LEAST_CHROMA = 0.45
_LEAST_AREA = 0.01
_LEAST_WAY = 0.08


class Reading(NamedTuple):
    """What the checker sees; None where it sees nothing that deserves a name."""

    color: str | None
    shape: str | None
    direction: str | None


class Score(NamedTuple):
    """Fractions in [0, 1] of clips whose property is as the caption says."""

    color: float
    shape: float
    direction: float
    clips: int


def read_clip(video: Float[np.ndarray, "3 frames height width"]) -> Reading:
    """Colour, shape and direction of the one coloured object of a clip."""
    chroma = video.max(axis=0) - video.min(axis=0)
    peak = float(np.quantile(chroma, 0.97))
    if peak < _LEAST_CHROMA:
        return Reading(None, None, None)
    mask = chroma > 0.5 * peak
    area = mask.mean(axis=(1, 2))
    seen = area > _LEAST_AREA
    if seen.sum() < max(2, mask.shape[0] // 2):
        return Reading(None, None, None)
    return Reading(_color(video, chroma > 0.8 * peak), _shape(mask[seen]), _direction(mask, seen))


def score(clips: Iterable[tuple[Float[np.ndarray, "3 frames height width"], Scene]]) -> Score:
    """Share of clips that show what their scene says."""
    hits = [
        tuple(
            a == b for a, b in zip(read_clip(video), (s.color, s.shape, s.direction), strict=True)
        )
        for video, s in clips
    ]
    color, shape, direction = (float(column) for column in np.mean(np.array(hits), axis=0))
    return Score(color, shape, direction, len(hits))


def _color(video: np.ndarray, inside: np.ndarray) -> str:
    mean = np.median(video[:, inside], axis=1)
    return min(COLORS, key=lambda name: float(np.sum((mean - np.array(COLORS[name])) ** 2)))


def _shape(mask: np.ndarray) -> str:
    fills = []
    for frame in mask:
        rows, columns = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        fills.append(frame.sum() / box)
    fill = float(np.median(fills))
    circle, square, triangle = SHAPES
    return square if fill > _SQUARE_ABOVE else circle if fill > _CIRCLE_ABOVE else triangle


def _direction(mask: np.ndarray, seen: np.ndarray) -> str | None:
    height, width = mask.shape[1:]
    weight = mask.sum(axis=(1, 2)).astype(np.float64) + 1e-9
    x = (mask.sum(axis=1) * (np.arange(width) + 0.5)).sum(axis=1) / weight / width
    y = (mask.sum(axis=2) * (np.arange(height) + 0.5)).sum(axis=1) / weight / height
    track = np.stack([x, y], axis=1)[seen]
    third = max(1, len(track) // 3)
    way = track[-third:].mean(axis=0) - track[:third].mean(axis=0)
    if np.abs(way).max() < _LEAST_WAY:
        return None
    return max(DIRECTIONS, key=lambda name: float(way @ np.array(DIRECTIONS[name])))
