"""Streams of captions and noise: what one purpose has seen, no other has."""

from itertools import combinations, pairwise

import pytest

from qsjax.errors import InputError
from qsjax.tiny.streams import HELD_OUT, STREAMS, disjoint, held_out


def test_no_caption_is_in_two_streams():
    found = {
        "calibration": disjoint("calibration", 100),
        "choice": disjoint("choice", 200),
        "report": disjoint("report", 64),
    }
    captions = {name: {scene.caption for scene in scenes} for name, scenes in found.items()}
    assert {name: len(those) for name, those in captions.items()} == {
        "calibration": 100,
        "choice": 200,
        "report": 64,
    }
    for one, other in combinations(captions.values(), 2):
        assert not one & other


def test_captions_that_have_chosen_something_report_nothing():
    """Those of the sparse tables, of placements and of quantization, whether or not the stream of choices leaves them out."""
    chosen = {scene.caption for scene in held_out(HELD_OUT, 258)}
    assert not chosen & {scene.caption for scene in disjoint("report", 200)}


def test_no_noise_is_in_two_streams():
    first = sorted(stream.noise for stream in STREAMS.values())
    assert all(after - before >= 1_000_000 for before, after in pairwise(first))


def test_a_later_part_of_a_stream():
    whole = disjoint("calibration", 6)
    assert disjoint("calibration", 4, first=2) == whole[2:]


def test_the_captions_that_report_never_change():
    """Stored results belong to them."""
    assert disjoint("report", 1)[0].caption == "a purple triangle moves down over a light gradient"


def test_a_stream_that_ends():
    with pytest.raises(InputError, match="the stream calibration has 120 captions, and 200 are"):
        disjoint("calibration", 200)
