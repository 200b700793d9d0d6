"""Files of videos: playable, whole or absent, never over something else unasked."""

import av
import numpy as np
import pytest
from PIL import Image

from qsjax.errors import InputError
from qsjax.video import check_writable, write_contact_sheet, write_video


def gradient(frames=9, height=32, width=48):
    t, y, x = np.indices((frames, height, width), dtype=np.float64)
    channels = [x / width, y / height, t / frames]
    return (np.stack(channels, axis=-1) * 200 + 20).astype(np.uint8)


def test_mp4_reads_back_as_what_was_written(tmp_path):
    video = gradient()
    path = write_video(video, tmp_path / "new" / "a.mp4", fps=8, comment="seed 3")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
        assert container.metadata["comment"] == "seed 3"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == video.shape
    error = np.mean((frames.astype(float) - video) ** 2)
    assert 10 * np.log10(255**2 / error) > 35
    assert [one.name for one in path.parent.iterdir()] == ["a.mp4"]


def test_contact_sheet_shows_frames_of_every_video(tmp_path):
    videos = [gradient(), 255 - gradient()]
    path = write_contact_sheet(videos, ["one", "two"], tmp_path / "sheet.png", columns=3, zoom=2)
    with Image.open(path) as opened:
        image = np.asarray(opened)
    assert image.shape == (2 * (64 + 16 + 4) + 4, 3 * (96 + 4) + 4, 3)
    np.testing.assert_array_equal(image[20:84:2, 4:100:2], videos[0][0])
    np.testing.assert_array_equal(image[104:168:2, 204:300:2], videos[1][-1])


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "uint8"),
        (np.zeros((0, 4, 4, 3), np.uint8), "uint8"),
        (np.zeros((2, 5, 4, 3), np.uint8), "even"),
    ],
)
def test_what_is_no_video_is_refused_and_leaves_nothing(tmp_path, video, message):
    with pytest.raises(InputError, match=message):
        write_video(video, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_existing_and_unwritable_places_are_refused(tmp_path):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match="pass `overwrite=True`"):
        write_video(gradient(), target, overwrite=False)
    assert target.read_bytes() == b"mine"
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(target / "inside" / "b.mp4", overwrite=False)
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path, overwrite=True)


def test_the_same_video_is_the_same_file(tmp_path):
    """libx264's macroblock tree gave other bits in every tenth run, of videos with shapes and noise as these."""
    random = np.random.default_rng(0)
    video = np.full((33, 64, 64, 3), 40, np.uint8)
    for number, frame in enumerate(video):
        frame[20:40, 8 + number : 28 + number] = (220, 30, 30)
    video += random.integers(0, 9, video.shape, np.uint8)
    files = {write_video(video, tmp_path / "a.mp4", fps=16).read_bytes() for _ in range(12)}
    assert len(files) == 1
