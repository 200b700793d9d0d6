"""Pictures and videos of several ways to make a clip, each with its label: side by side, and as a strip of frames."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from qsjax.errors import InputError
from qsjax.video import Video, check_video, writing_file

_GAP = 4
_LARGEST = 30
"""Pixels of a font's size."""
_LINE = 1.4
"""Height of a line of text in sizes of its font."""


def side_by_side(
    videos: Sequence[Video], labels: Sequence[str], *, zoom: int = 1
) -> UInt8[np.ndarray, "T H W 3"]:
    """One video of several, from left to right, each with its label above.

    The text is as large as the width of one video allows, and at most 30 pixels high.

    Args:
        videos: uint8 [T, H, W, 3] each, all of one size and length.
        labels: one a video; longer text is cut off at the video's right edge.
        zoom: pixels of the result per pixel of a video.

    Returns:
        uint8 [T, band + zoom * H, zoom * W * videos, 3]; height and width are even, as mp4 files need it.

    Raises:
        InputError: no videos, videos of several sizes, or another number of labels.
    """
    _require_alike(videos, labels)
    height, width = (zoom * size for size in videos[0].shape[1:3])
    size = _size_that_fits(labels, width - 2 * _GAP)
    band = _band(size)
    band += (band + height) % 2
    enlarged = [video.repeat(zoom, axis=1).repeat(zoom, axis=2) for video in videos]
    heads = [_text(label, (width, band), size) for label in labels]
    pictures = [
        np.concatenate([np.broadcast_to(head, (len(video), *head.shape)), video], axis=1)
        for head, video in zip(heads, enlarged, strict=True)
    ]
    joined = np.concatenate(pictures, axis=2)
    return joined[:, :, : joined.shape[2] // 2 * 2]


def write_strip(
    rows: Sequence[Sequence[Video]],
    labels: Sequence[str],
    captions: Sequence[str],
    path: str | os.PathLike[str],
    *,
    frames: int = 4,
    zoom: int = 2,
    overwrite: bool = True,
) -> Path:
    """Write a PNG for a page: a row of frames for each way, its label above; a column of clips for each caption.

    Args:
        rows: for each label the clips of all captions, uint8 [T, H, W, 3] each, all of one size.
        labels: one a row.
        captions: one a clip of a row; they stand above the first row.
        path: the file; its folder is made.
        frames: evenly spaced frames that are shown of each clip.
        zoom: pixels of the picture per pixel of video.
        overwrite: replace a file of that name.

    Raises:
        InputError: rows of unlike length, another number of labels, or a place that cannot be written.
    """
    from PIL import Image

    if {len(row) for row in rows} != {len(captions)}:
        raise InputError(
            f"rows of {[len(row) for row in rows]} clips and {len(captions)} captions: give every row one clip a caption"
        )
    _require_alike([row[0] for row in rows], labels)
    blocks = [[_frames(clip, frames, zoom) for clip in row] for row in rows]
    width, gap = blocks[0][0].shape[1], 4 * _GAP
    whole = len(captions) * (width + gap) - gap
    size = _size_that_fits(captions, width - 2 * _GAP)
    heads = [_text(caption, (width, _band(size)), size) for caption in captions]
    parts = [_beside(heads, gap)]
    size = _size_that_fits(labels, whole - 2 * _GAP)
    for label, row in zip(labels, blocks, strict=True):
        parts += [_text(label, (whole, _band(size)), size), _beside(row, gap)]
    with writing_file(Path(path), overwrite=overwrite) as temporary:
        Image.fromarray(np.concatenate(parts)).save(temporary, format="PNG", optimize=True)
    return Path(path)


def _require_alike(videos: Sequence[Video], labels: Sequence[str]) -> None:
    if not videos or len(videos) != len(labels):
        raise InputError(f"{len(videos)} videos and {len(labels)} labels: give one label a video")
    for video in videos:
        check_video(video)
    if len({video.shape for video in videos}) > 1:
        sizes = ", ".join("x".join(map(str, video.shape[:3])) for video in videos)
        raise InputError(f"videos of {sizes}: give videos of one size and length")


def _frames(video: Video, count: int, zoom: int) -> np.ndarray:
    places = np.linspace(0, len(video) - 1, count).round().astype(int)
    shown = video[places].repeat(zoom, axis=1).repeat(zoom, axis=2)
    return _beside(list(shown), _GAP)


def _beside(pictures: Sequence[np.ndarray], gap: int) -> np.ndarray:
    between = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([part for one in pictures for part in (between, one)][1:], axis=1)


def _band(size: int) -> int:
    """Height of the white band for a line of text."""
    return int(size * _LINE) + _GAP


def _text(text: str, size: tuple[int, int], height: int) -> UInt8[np.ndarray, "H W 3"]:
    """A white picture, width x height of `size`, with a line of text near its bottom."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", size, "white")
    font = ImageFont.load_default(height)
    baseline = size[1] - _GAP - height // 4
    ImageDraw.Draw(picture).text((_GAP, baseline), text, fill="black", font=font, anchor="ls")
    return np.asarray(picture)


def _size_that_fits(texts: Sequence[str], width: int) -> int:
    """The largest size of the font, from 8 to 30 pixels, in which all texts are at most so wide."""
    from PIL import ImageFont

    sizes = range(_LARGEST, 8, -1)
    fitting = (
        size
        for size in sizes
        if max(ImageFont.load_default(size).getlength(text) for text in texts) <= width
    )
    return next(fitting, 8)
