"""Two videos of one prompt and noise: an mp4 of both with labels, and a strip of frames, their difference and PSNR over time."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from qsjax.disk import replacing
from qsjax.errors import InputError
from qsjax.evaluate.metrics import PSNR_CAP, SSIM_WINDOW, psnr_by_frame, ssim
from qsjax.video import check_writable, write_video

_NARROWEST, _WIDEST = 256, 640
"""Pixels of one video beside the other: small ones are enlarged by whole numbers, large ones shrunk."""
_COLUMNS, _STRIP_WIDTH = 6, 160
"""Frames of the strip, and pixels of one, about."""
_BAND, _GAP = 22, 4
_CHART_HEIGHT = 170
_AMPLIFIED = 4
"""Factor of the difference, which would else be hard to see."""
_INK, _GREY, _LINE = (20, 20, 20), (150, 150, 150), (200, 60, 40)


@dataclass(frozen=True, eq=False)
class SideBySide:
    """A video and what it is compared with.

    Attributes:
        reference, video: frames.
        names: labels of both.
        psnr_by_frame: decibels.
        ssim: the mean over frames; None of frames that are too small for it.
    """

    reference: UInt8[np.ndarray, "F Y X 3"]
    video: UInt8[np.ndarray, "F Y X 3"]
    names: tuple[str, str]
    psnr_by_frame: Float[np.ndarray, " F"]
    ssim: float | None

    @classmethod
    def of(cls, reference: np.ndarray, video: np.ndarray, names: tuple[str, str]) -> "SideBySide":
        """Compare two videos.

        Args:
            reference: uint8 [F, Y, X, 3].
            video: of the same shape.
            names: labels of both.

        Raises:
            InputError: unlike shapes.
        """
        if reference.shape != video.shape:
            raise InputError(
                f"videos of {list(video.shape)} and {list(reference.shape)}: compare videos of one size"
            )
        # A frame at a time: a long video would take gigabytes as floats.
        pairs = [
            (a[None, None] / np.float32(255), b[None, None] / np.float32(255))
            for a, b in zip(video, reference, strict=True)
        ]
        small = min(video.shape[1:3]) < SSIM_WINDOW
        return cls(
            reference,
            video,
            names,
            np.array([psnr_by_frame(*pair)[0, 0] for pair in pairs]),
            None if small else float(np.mean([ssim(*pair)[0] for pair in pairs])),
        )

    @property
    def psnr(self) -> float:
        """Decibels of the mean squared error over all frames."""
        return float(-10 * np.log10(np.mean(10 ** (-self.psnr_by_frame / 10))))

    def plain(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "psnr": round(self.psnr, 3),
            "psnr_by_frame": np.round(self.psnr_by_frame, 3).tolist(),
            "ssim": None if self.ssim is None else round(self.ssim, 5),
        }

    def write_video(
        self, path: str | os.PathLike[str], *, fps: int, comment: str = "", overwrite: bool = True
    ) -> Path:
        """Write an mp4 of both, the reference on the left, with their names and the PSNR of each frame above.

        Args:
            path: the file; its folder is made.
            fps: frames a second.
            comment: kept in the file's metadata.
            overwrite: replace a file of that name.

        Raises:
            InputError: no such speed, or a place that cannot be written.
        """
        videos = {self.names[0]: self.reference, self.names[1]: self.video}
        figures = [None, self.psnr_by_frame]
        if len(videos) == 1:  # both have one name
            videos = {f"{self.names[0]} (left)": self.reference, self.names[1]: self.video}
        return write_row(
            videos, path, figures=figures, fps=fps, comment=comment, overwrite=overwrite
        )

    def write_strip(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Write a PNG: rows of evenly spaced frames of both and of their difference, and PSNR over time.

        Raises:
            InputError: a place that cannot be written.
        """
        from PIL import Image

        at = np.linspace(0, len(self.video) - 1, min(_COLUMNS, len(self.video))).round().astype(int)
        a, b = self.reference[at], self.video[at]
        difference = np.abs(a.astype(np.int16) - b) * _AMPLIFIED
        titles = (*self.names, f"difference, {_AMPLIFIED} times")
        rows = []
        for frames, title in zip((a, b, np.minimum(difference, 255)), titles, strict=True):
            shown = _resized(frames.astype(np.uint8), _STRIP_WIDTH, 2 * _STRIP_WIDTH)
            padded = np.pad(
                shown, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), "constant", constant_values=255
            )
            line = np.concatenate(list(padded), axis=1)
            rows += [_band(line.shape[1], title), line]
        rows += [_band(rows[0].shape[1], "PSNR over time, dB"), self._chart(rows[0].shape[1])]
        target = Path(path)
        check_writable(target, overwrite=overwrite)
        with replacing(target) as temporary:
            Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")
        return target

    def _chart(self, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """PSNR by frame as a line."""
        from PIL import Image, ImageDraw

        values = self.psnr_by_frame
        low, high = np.floor(values.min()), np.ceil(values.max())
        high = max(high, low + 1)
        image = Image.new("RGB", (width, _CHART_HEIGHT), "white")
        draw, font = ImageDraw.Draw(image), _font()
        left, right, top, bottom = 44, width - 12, 8, _CHART_HEIGHT - 24

        def place(index: int, value: float) -> tuple[float, float]:
            across = index / max(len(values) - 1, 1)
            up = (value - low) / (high - low)
            return left + across * (right - left), bottom - up * (bottom - top)

        for level in (low, (low + high) / 2, high):
            y = place(0, float(level))[1]
            draw.line([(left, y), (right, y)], fill=(225, 225, 225))
            draw.text((left - 6, y), f"{level:g}", fill=_INK, font=font, anchor="rm")
        points = [place(index, float(value)) for index, value in enumerate(values)]
        draw.line(points if len(points) > 1 else points * 2, fill=_LINE, width=2)
        draw.text((left, bottom + 5), "frame 1", fill=_GREY, font=font, anchor="la")
        draw.text((right, bottom + 5), f"frame {len(values)}", fill=_GREY, font=font, anchor="ra")
        return np.asarray(image)


def write_row(
    videos: Mapping[str, UInt8[np.ndarray, "F Y X 3"]],
    path: str | os.PathLike[str],
    *,
    fps: int,
    figures: Sequence[Float[np.ndarray, " F"] | None] = (),
    comment: str = "",
    overwrite: bool = True,
) -> Path:
    """Write an mp4 of videos of one size beside each other, each with its label above.

    Args:
        videos: by label.
        path: the file; its folder is made.
        fps: frames a second.
        figures: decibels of each frame of a video, shown beside its label; None shows none.
        comment: kept in the file's metadata.
        overwrite: replace a file of that name.

    Raises:
        InputError: no such speed, or a place that cannot be written.
    """
    columns = []
    for number, (label, video) in enumerate(videos.items()):
        shown = _resized(video, _NARROWEST, _WIDEST)
        width = shown.shape[2]
        decibels = figures[number] if number < len(figures) else None
        bands = (
            [_band(width, label)] * len(shown)
            if decibels is None
            else [_band(width, label, _decibels(float(value))) for value in decibels]
        )
        column = np.concatenate([np.stack(bands), shown], axis=1)
        gap = np.full((*column.shape[:2], _GAP, 3), 255, np.uint8)
        columns += [gap, column] if number else [column]
    row = np.concatenate(columns, axis=2)
    even = row[:, : row.shape[1] // 2 * 2, : row.shape[2] // 2 * 2]
    return write_video(even, path, fps=fps, comment=comment, overwrite=overwrite)


def _resized(
    video: UInt8[np.ndarray, "F Y X 3"], narrowest: int, widest: int
) -> UInt8[np.ndarray, "F y x 3"]:
    """Frames enlarged by a whole number to about `narrowest` pixels of width, or shrunk to `widest`."""
    from PIL import Image

    height, width = video.shape[1:3]
    if width <= widest:
        zoom = max(1, -(-narrowest // width))
        return video.repeat(zoom, axis=1).repeat(zoom, axis=2)
    size = (widest, max(1, round(height * widest / width)))
    return np.stack(
        [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.LANCZOS)) for x in video]
    )


def _band(width: int, left: str, right: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """A line of text on white: a name, cut where it meets the figure at the right end."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, _BAND), "white")
    draw, font = ImageDraw.Draw(image), _font()
    room = width - 8 - draw.textlength(right, font=font)
    while left and draw.textlength(left, font=font) > room:
        left = left[:-1]
    draw.text((3, _BAND // 2), left, fill=_INK, font=font, anchor="lm")
    draw.text((width - 3, _BAND // 2), right, fill=_INK, font=font, anchor="rm")
    return np.asarray(image)


def _decibels(value: float) -> str:
    return "equal" if value >= PSNR_CAP else f"{value:.1f} dB"


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(13)
