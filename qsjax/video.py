"""Writing sampled videos as mp4 files and contact sheets, each completely or not at all."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from qsjax.disk import beside, replacing, require_room, writing
from qsjax.errors import InputError
from qsjax.untrusted import shown

Video = np.ndarray
_FASTEST = 1000
"""Frames per second."""
_ENCODER = {"crf": "20", "x264-params": "mbtree=0"}
"""Of libx264. Its macroblock tree gives other bits from time to time, with one thread too; without it the same video is the same file."""
_PIXELS_A_BYTE = 8
"""Of a video that is easy to compress; a disk without room for that has none for any."""


def write_video(
    video: Video,
    path: str | os.PathLike[str],
    *,
    fps: int = 24,
    comment: str = "",
    overwrite: bool = True,
) -> Path:
    """Write an H.264 mp4 that browsers play (yuv420p, faststart).

    Args:
        video: uint8 [T, H, W, 3]; H and W even.
        path: the file; its folder is made.
        fps: frames per second, 1 to 1000.
        comment: kept in the file's metadata (seed, model).
        overwrite: replace a file of that name.

    Raises:
        InputError: not a video, an odd size, no such speed, or a place that cannot be written.
    """
    import av

    check_video(video)
    check_fps(fps)
    if video.shape[1] % 2 or video.shape[2] % 2:
        raise InputError(
            f"video of {video.shape[1]}x{video.shape[2]} pixels: mp4 needs even sizes; crop a row or column"
        )
    target = Path(path)
    with (
        writing_file(target, overwrite) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps), options=_ENCODER)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target


def write_contact_sheet(
    videos: Sequence[Video],
    captions: Sequence[str],
    path: str | os.PathLike[str],
    *,
    columns: int = 8,
    zoom: int = 1,
    overwrite: bool = True,
) -> Path:
    """Write a PNG with one row of evenly spaced frames a video, its caption above.

    Args:
        videos: uint8 [T, H, W, 3] each, of one size.
        captions: one per video.
        path: the file; its folder is made.
        columns: frames shown of each video.
        zoom: pixels of the sheet per pixel of video.
        overwrite: replace a file of that name.

    Raises:
        InputError: no videos, or a place that cannot be written.
    """
    from PIL import Image, ImageDraw

    if not videos or len(videos) != len(captions):
        raise InputError(
            f"{len(videos)} videos and {len(captions)} captions: give one caption a video"
        )
    for video in videos:
        check_video(video)
    height, width = (zoom * size for size in videos[0].shape[1:3])
    gap, band = 4, 16
    size = (columns * (width + gap) + gap, len(videos) * (height + band + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, (video, caption) in enumerate(zip(videos, captions, strict=True)):
        top = gap + row * (height + band + gap)
        draw.text((gap, top), caption, fill="black")
        for column, index in enumerate(np.linspace(0, len(video) - 1, columns).round().astype(int)):
            frame = Image.fromarray(video[index]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(frame, (gap + column * (width + gap), top + band))
    target = Path(path)
    with writing_file(target, overwrite) as temporary:
        sheet.save(temporary, format="PNG")
    return target


@contextmanager
def writing_file(target: Path, overwrite: bool) -> Generator[Path, None, None]:
    """A temporary name beside `target`, moved into place when the block ends without an error."""
    check_writable(target, overwrite=overwrite)
    with replacing(target) as temporary:
        yield temporary


def check_writable(target: Path, *, overwrite: bool, pixels: int = 0) -> None:
    """Make the folder of `target` and check that a file can be written there, before the work whose result it will hold.

    Args:
        target: the file.
        overwrite: it may be there.
        pixels: of a video, all frames together: there is room for the smallest that it can become.

    Raises:
        InputError: the file exists and `overwrite` is off, or the folder cannot be written or is full.
    """
    probe = beside(target, ".probe")
    with writing(target, "name a writable place"):
        if target.is_dir():
            raise InputError(f"{target}: is a folder; name a file in it")
        if target.exists() and not overwrite:
            raise InputError(
                f"{target}: exists already; pass `overwrite=True` to replace it or name another file"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    require_room(target, least_bytes(pixels))


def least_bytes(pixels: int) -> int:
    """The size of the smallest file that a video can become, of whose frames all have so many pixels together."""
    return pixels // _PIXELS_A_BYTE


def check_fps(fps: int) -> None:
    """Refuse a speed that no file has, before the video is made.

    Raises:
        InputError: it is not from 1 to 1000.
    """
    if not 1 <= fps <= _FASTEST:
        raise InputError(
            f"fps={shown(fps)}: give a number of frames per second from 1 to {_FASTEST}"
        )


def check_video(video: Video) -> None:
    """Refuse what is no video.

    Raises:
        InputError: not uint8 [T, H, W, 3] with a frame or more.
    """
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or not len(video):
        raise InputError(
            f"a video is uint8 [frames, height, width, 3], not {video.dtype} {list(video.shape)}"
        )


def to_uint8(frames: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Convert frames in [0, 1] to 8 bits, rounded to nearest."""
    return np.round(frames * 255).astype(np.uint8)
