"""Static masks: what each family promises, at any size."""

import numpy as np
import pytest

from qsjax.errors import InputError
from qsjax.settings.sparsity import CHOSEN, FAMILIES, Sparsity
from qsjax.sparse import Layout
from qsjax.sparse.masks import STATIC, band, longest_for, own, radial, sink, sliding_tiles, window

HUNYUAN = Layout.frame_major((33, 45, 80), 128)
SMALL = Layout.frame_major((9, 8, 8), 16)


def layout_for(name, grid=(9, 8, 8)):
    return Layout(grid, (3, 4, 4), 16) if name == "sta" else Layout.frame_major(grid, 16)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("density", [0.05, 0.15, 0.4, 1.0])
def test_every_row_sees_itself_and_density_is_near(name, density):
    seen = STATIC[name](layout_for(name), density)
    assert np.diagonal(seen).all()
    if name == "dense":
        assert seen.all()
    elif name != "sta":
        # A band's next width adds two blocks a row, a radial reach less.
        assert abs(seen.mean() - density) <= 1.01 / 36 + 1e-9
    else:
        assert seen.mean() <= max(density, 1 / 12)


@pytest.mark.parametrize("density", [0.15, 0.25, 0.4])
def test_a_band_at_720p_has_the_density_it_is_asked_for(density):
    seen = band(HUNYUAN, density)
    assert seen.mean() == pytest.approx(density, abs=0.001)
    np.testing.assert_array_equal(seen, seen.T)
    # As published: half as many keys at the ends.
    assert seen[0].sum() * 2 - 1 == seen[464].sum()


def test_a_window_gives_every_row_the_same():
    seen = window(HUNYUAN, 0.15)
    assert set(seen.sum(axis=1)) == {round(0.15 * HUNYUAN.kv_blocks)}
    middle = seen[464]
    assert abs(np.flatnonzero(middle).mean() - 464) <= 0.5


def test_sliding_tiles_are_boxes_around_the_query():
    layout = Layout((6, 8, 8), (2, 4, 4), 32)
    seen = sliding_tiles(layout, 0.5)  # 12 tiles: 3 along time, 2 x 2 in space
    assert (seen.sum(axis=1) == 6).all()
    places = np.stack(np.unravel_index(np.arange(12), layout.tiles), axis=1)
    for row, keys in enumerate(seen):
        spread = np.ptp(places[keys], axis=0) + 1
        assert np.prod(spread) == 6
        assert (np.abs(places[keys] - places[row]) < spread).all()


def test_sliding_tiles_need_whole_blocks():
    with pytest.raises(InputError, match="not made of whole blocks of 32"):
        sliding_tiles(Layout((6, 8, 8), (1, 4, 4), 32), 0.5)


def test_radial_reach_shrinks_with_distance_in_time():
    layout = Layout.frame_major((16, 32, 32), 32)  # 32 blocks a frame
    seen = radial(layout, 0.2)
    row = 8 * 32 + 16
    per_frame = seen[row].reshape(16, 32).sum(axis=1)
    assert (np.diff(per_frame[8:]) <= 1).all()
    assert per_frame[8] > per_frame[10] > per_frame[12] > 0
    assert seen.mean() == pytest.approx(0.2, abs=0.02)
    with pytest.raises(InputError, match="frame-major"):
        radial(Layout.token_major((4, 4, 4), 16), 0.2)


def test_a_sink_is_the_first_frames_in_any_order():
    assert np.flatnonzero(sink(SMALL, 1)).tolist() == [0, 1, 2, 3]
    everywhere = sink(Layout.token_major((9, 8, 8), 9), 1)
    assert everywhere.all()  # every place has its first frame
    assert not sink(SMALL, 0).any()


GRIDS = {"480p": (16, 30, 52), "720p": (16, 45, 80), "720p, 129 frames": (33, 45, 80)}
"""Tokens of HunyuanVideo's usual sizes."""
TILED = {"sta": (8, 8, 8), "topk": (1, 8, 16), "topp": (4, 8, 16)}


def executed_share(mask, grid, density):
    """Pairs in the blocks of a mask's lists over the video's pairs of tokens, with the TPU's blocks of 512 x 128."""
    config = Sparsity(mask=mask, density=density, tile=TILED.get(mask, (1, 1, 1)))
    config = config.sized(int(np.prod(grid)), "tpu")
    assert (config.block_q, config.block_kv) == (512, 128)
    layout = Layout(grid, config.tile, 512, 128)
    if mask in CHOSEN:
        blocks = layout.q_blocks * longest_for(layout, density)
    else:
        name = {"svg": "band", "svg-window": "window"}.get(mask, mask)
        blocks = int((STATIC[name](layout, density) & layout.filled).sum())
    return blocks * 512 * 128 / layout.tokens**2


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("mask", [mask for mask in FAMILIES if mask != "dense"])
def test_the_density_is_what_large_blocks_execute(mask, grid):
    """At most a tenth more than 15 %; less only where a box of tiles cannot come nearer, or its tiles do not fit the video."""
    share = executed_share(mask, grid, 0.15)
    assert share <= 0.165
    assert share >= (0.1 if mask == "sta" else 0.14)


def test_blocks_of_queries_may_be_larger_than_those_of_keys():
    layout = Layout.frame_major((8, 8, 8), 64, 16)  # 8 x 32 blocks, a frame a block of queries
    # The four blocks of the frame itself, and as many on each side of it: more of the band, which ends at the ends of the video.
    for name, first, last in (("window", 8, 20), ("band", 7, 21)):
        seen = STATIC[name](layout, 0.375)
        np.testing.assert_array_equal(np.flatnonzero(seen[3]), np.arange(first, last))
    np.testing.assert_array_equal(own(layout), np.kron(np.eye(8, dtype=bool), np.ones(4, bool)))
    uneven = Layout.frame_major((1, 1, 6), 2, 3)
    assert own(uneven).tolist() == [[True, False], [True, True], [False, True]]


@pytest.mark.parametrize("name", STATIC)
def test_at_density_one_padding_of_tiles_leaves_nothing_out(name):
    grid = (5, 7, 6)
    layout = Layout(grid, (4, 4, 4) if name == "sta" else (1, 1, 1), 32, 8)
    seen = STATIC[name](layout, 1.0)
    assert seen[layout.filled].all()
