"""Labelled pictures of several videos: every frame is there, text is drawn, and what does not fit together is refused."""

import numpy as np
import pytest
from PIL import Image

from qsjax.errors import InputError
from qsjax.labels import side_by_side, write_strip

BLACK = np.zeros((5, 16, 24, 3), np.uint8)
RED = np.full_like(BLACK, (200, 30, 10))


def test_videos_stand_beside_each_other_under_their_labels():
    video = side_by_side([BLACK, RED], ["one", "two"], zoom=3)
    frames, height, width, _ = video.shape
    assert (frames, width) == (5, 2 * 72)
    assert height % 2 == 0
    band = height - 48
    for place, original in ((0, BLACK), (72, RED)):
        below = video[:, band:, place : place + 72]
        assert (below == original[0, 0, 0]).all()
        head = video[:, :band, place : place + 72]
        assert 0 < (head < 128).any(axis=-1).mean() < 0.5  # text, on white
    one, two = video[0, :band, :72], video[0, :band, 72:]
    assert (one != two).any()


def test_an_odd_width_loses_a_column():
    assert side_by_side([BLACK[:, :, :9]], ["a"]).shape[2] == 8


def test_a_strip_has_a_row_a_label_and_a_column_a_caption(tmp_path):
    rows = [[BLACK, BLACK], [RED, RED], [BLACK, BLACK]]
    path = write_strip(rows, ["a", "b", "c"], ["left", "right"], tmp_path / "s.png", frames=3)
    with Image.open(path) as opened:
        image = np.asarray(opened)
    clip = 3 * (2 * 24 + 4) - 4
    assert image.shape[1] == 2 * clip + 16
    red = (image == RED[0, 0, 0]).all(axis=-1)
    assert red.sum() == 2 * 3 * 32 * 48
    assert [one.name for one in tmp_path.iterdir()] == ["s.png"]
    with pytest.raises(InputError, match="overwrite=True"):
        write_strip(rows, ["a", "b", "c"], ["left", "right"], path, overwrite=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: side_by_side([BLACK], ["a", "b"]), "1 videos and 2 labels"),
        (lambda path: side_by_side([], []), "give one label a video"),
        (lambda path: side_by_side([BLACK, RED[:3]], ["a", "b"]), "videos of 5x16x24, 3x16x24"),
        (lambda path: side_by_side([BLACK[0]], ["a"]), "a video is uint8"),
        (lambda path: write_strip([[BLACK], []], ["a", "b"], ["c"], path), "rows of .1, 0. clips"),
        (lambda path: write_strip([[BLACK]], ["a", "b"], ["c"], path), "1 videos and 2 labels"),
        (lambda path: write_strip([], [], ["c"], path), "give every row one clip a caption"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path / "s.png")
    assert not list(tmp_path.iterdir())
