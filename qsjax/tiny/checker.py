"""Reads colour, shape and motion back from a clip, so that samples are scored without a viewer.

Works on float video in [-1, 1]. Objects are what has chroma: backgrounds of `qsjax.tiny.data` are nearly grey.
"""

from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from qsjax.tiny.scenes import COLORS, DIRECTIONS, SHAPES, Scene

Video = Float[np.ndarray, "3 frames height width"]
Mask = Bool[np.ndarray, "frames height width"]

# Area over bounding box: square 1, circle pi/4 = 0.79, triangle 0.5; the cuts lie half-way.
_CIRCLE_ABOVE, _SQUARE_ABOVE = 0.645, 0.89
_LEAST_CHROMA = 0.45
_LEAST_AREA = 0.005
# Of the centre, between the first and the last third of a clip, as a fraction of the frame.
_LEAST_WAY = 0.05
# Area in the last third over that in the first: 2.6 for a growing shape, 1 for the others.
_GROWN_ABOVE = 1.6
# Spread of the centre across its main direction over that along it: 0 on a line, 0.7 on three quarters of a circle.
_ROUND_ABOVE = 0.35
_HUE_ROUNDS = 5


class Reading(NamedTuple):
    """What the checker sees of one object; None where it sees nothing that deserves a name."""

    color: str | None
    shape: str | None
    motion: str | None


class Score(NamedTuple):
    """Fractions in [0, 1] of clips whose every object is as the caption says."""

    color: float
    shape: float
    motion: float
    clips: int


NOTHING = Reading(None, None, None)


def read_clip(video: Video, objects: int = 1) -> tuple[Reading, ...]:
    """Colour, shape and motion of the coloured objects of a clip, in no particular order.

    Args:
        video: in [-1, 1].
        objects: how many to look for, 1 or 2; two are told apart by hue.
    """
    chroma = video.max(axis=0) - video.min(axis=0)
    peak = float(np.quantile(chroma, 0.97))
    if peak < _LEAST_CHROMA:
        return (NOTHING,) * objects
    mask = chroma > 0.5 * peak
    masks = [mask] if objects == 1 else _by_hue(video, mask, chroma > 0.65 * peak)
    return tuple(_read(video, chroma, part) for part in masks)


def score(clips: Iterable[tuple[Video, Scene]]) -> Score:
    """Share of clips that show what their scene says."""
    found = np.array([hits(video, scene) for video, scene in clips])
    color, shape, motion = (float(column) for column in found.mean(axis=0))
    return Score(color, shape, motion, len(found))


def hits(video: Video, scene: Scene) -> tuple[bool, bool, bool]:
    """Whether colour, shape and motion are right for all objects of a clip, under the assignment of readings that fits best.

    Args:
        video: in [-1, 1].
        scene: what its caption says.
    """
    wanted = [(item.color, item.shape, item.motion) for item in scene.objects]

    def compare(readings: Sequence[Reading]) -> tuple[bool, bool, bool]:
        pairs = list(zip(readings, wanted, strict=True))
        color, shape, motion = (all(a[i] == b[i] for a, b in pairs) for i in range(3))
        return color, shape, motion

    return max((compare(order) for order in permutations(read_clip(video, len(wanted)))), key=sum)


def _read(video: Video, chroma: Float[np.ndarray, "frames height width"], mask: Mask) -> Reading:
    seen = mask.mean(axis=(1, 2)) > _LEAST_AREA
    if seen.sum() < max(2, len(mask) // 2):
        return NOTHING
    inside = mask & (chroma > 0.8 * np.quantile(chroma[mask], 0.8))
    return Reading(_color(video, inside), _shape(mask[seen]), _motion(mask[seen]))


def _by_hue(video: Video, mask: Mask, inside: Mask) -> list[Mask]:
    """Split a mask in two by the direction of chroma, which blending with grey at an outline does not change."""
    tint = video - video.mean(axis=0)
    hue = tint / (np.linalg.norm(tint, axis=0) + 1e-6)
    strong = hue[:, inside].T
    first = strong[np.argmin(strong @ strong.mean(axis=0))]
    centers = np.stack([first, strong[np.argmin(strong @ first)]])
    for _ in range(_HUE_ROUNDS):
        nearest = np.argmax(strong @ centers.T, axis=1)
        if len(set(nearest.tolist())) < 2:
            break
        centers = np.stack([strong[nearest == i].mean(axis=0) for i in range(2)])
    nearest = np.argmax(np.tensordot(centers, hue, axes=1), axis=0)
    return [mask & (nearest == i) for i in range(2)]


def _color(video: Video, inside: Mask) -> str:
    mean = np.median(video[:, inside], axis=1)
    return min(COLORS, key=lambda name: float(np.sum((mean - np.array(COLORS[name])) ** 2)))


def _shape(mask: Mask) -> str:
    fills = []
    for frame in mask:
        rows, columns = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        fills.append(frame.sum() / box)
    fill = float(np.median(fills))
    circle, square, triangle = SHAPES
    return square if fill > _SQUARE_ABOVE else circle if fill > _CIRCLE_ABOVE else triangle


def _motion(mask: Mask) -> str | None:
    height, width = mask.shape[1:]
    area = mask.sum(axis=(1, 2)).astype(np.float64)
    third = max(1, len(mask) // 3)
    if area[-third:].mean() > _GROWN_ABOVE * area[:third].mean():
        return "grows"
    x = (mask.sum(axis=1) * (np.arange(width) + 0.5)).sum(axis=1) / area / width
    y = (mask.sum(axis=2) * (np.arange(height) + 0.5)).sum(axis=1) / area / height
    track = np.stack([x, y], axis=1)
    across, along = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(track.T)), 0.0))
    if along > 0.3 * _LEAST_WAY and across > _ROUND_ABOVE * along:
        return "around"
    way = track[-third:].mean(axis=0) - track[:third].mean(axis=0)
    if np.abs(way).max() < _LEAST_WAY:
        return None
    return max(DIRECTIONS, key=lambda name: float(way @ np.array(DIRECTIONS[name])))
