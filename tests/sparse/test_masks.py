"""Static masks: what each family promises, at any size."""

import numpy as np
import pytest

from pallas_kernels import targets
from pallas_kernels.targets import TARGETS
from qsjax.errors import InputError
from qsjax.settings.sparsity import CHOSEN, FAMILIES, Sparsity
from qsjax.sparse import Layout, Pattern
from qsjax.sparse.boxes import box, cell_for, tile_for
from qsjax.sparse.masks import STATIC, band, radial, sink, sliding_tiles, window
from qsjax.sparse.shares import longest_for, own

HUNYUAN = Layout.frame_major((33, 45, 80), 128)
SMALL = Layout.frame_major((9, 8, 8), 16)


def layout_for(name, grid=(9, 8, 8)):
    tile = {"sta": (3, 4, 4), "box": (1, 4, 4)}.get(name, (1, 1, 1))
    return Layout(grid, tile, 16)


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
TILED = {"sta": (8, 8, 8), "topk": (16, 8, 4), "topp": (4, 8, 16)}


def executed_share(mask, grid, density):
    """Pairs in the blocks of a mask's lists over the video's pairs of tokens, with the TPU's blocks of 512 x 128."""
    config = Sparsity(mask=mask, density=density, tile=TILED.get(mask, (1, 1, 1)))
    with targets.assumed(TARGETS["v5e"]):
        pattern = Pattern(config, grid, 256)
    layout, choice = pattern.layouts[0], pattern.empty(1, 1)
    assert (layout.block_q, layout.block_kv) == (512, 128)
    rows = layout.q_blocks
    listed = (
        rows * choice.indices.shape[-1] if mask in CHOSEN else pattern.lists(choice).counts.sum()
    )
    blocks = int(listed) - rows * pattern.text_blocks
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


@pytest.mark.parametrize("name", ["band", "window", "radial"])
@pytest.mark.parametrize("blocks", [(8, 3), (3, 8), (64, 16)], ids=str)
def test_every_row_sees_itself_whatever_the_blocks(name, blocks):
    layout = Layout.frame_major((5, 7, 6), *blocks)
    seen = STATIC[name](layout, 0.01)
    assert seen[own(layout)].all()
    assert longest_for(layout, 0.01) == own(layout).sum(axis=1).max()


@pytest.mark.parametrize("name", STATIC)
def test_at_density_one_padding_of_tiles_leaves_nothing_out(name):
    grid = (5, 7, 6)
    layout = Layout(grid, (4, 4, 4) if name in ("sta", "box") else (1, 1, 1), 32, 8)
    seen = STATIC[name](layout, 1.0)
    assert seen[layout.filled].all()


def places(layout, slots):
    return np.stack(np.unravel_index(layout.order[slots], layout.grid), axis=1)


def test_a_box_of_cells_is_around_each_tile_and_inside_the_video():
    layout = Layout((8, 16, 16), (4, 4, 4), 64, 16, (4, 2, 2))  # 2 x 4 x 4 tiles of four cells
    seen = box(layout, 0.25)
    assert (seen.sum(axis=1) == 32).all()  # of 128 cells
    assert seen[own(layout)].all()
    for row, keys in enumerate(seen):
        tokens = places(layout, np.repeat(keys, 16))
        assert np.prod(np.ptp(tokens, axis=0) + 1) == len(tokens)  # a whole box
        middle = places(layout, np.arange(64 * row, 64 * row + 64)).mean(axis=0)
        apart = np.abs(tokens.mean(axis=0) - middle)
        inside = (middle > 5) & (middle < 11)
        assert (apart[1:] <= 1)[inside[1:]].all()
    with pytest.raises(InputError, match="not whole blocks of 32 x 64"):
        box(Layout((8, 8, 8), (4, 4, 4), 32, 64, (4, 2, 2)), 0.5)


@pytest.mark.parametrize(
    ("grid", "tokens", "tile", "cell"),
    [
        ((16, 30, 52), 512, (16, 8, 4), (8, 4, 4)),
        ((33, 45, 80), 512, (4, 16, 8), (4, 8, 4)),
        ((9, 8, 8), 16, (1, 4, 4), (1, 2, 2)),
        ((5, 6, 9), 27, (1, 3, 9), (1, 3, 9)),
    ],
)
def test_boxes_follow_the_video(grid, tokens, tile, cell):
    assert tile_for(grid, tokens) == tile
    assert cell_for(tile, tokens // 4) == cell
