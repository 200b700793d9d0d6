"""Orders of video tokens: nothing is lost, neighbours stay together, any grid."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsjax.errors import InputError
from qsjax.sparse import Layout

SIZES = st.tuples(*[st.integers(1, 5)] * 3)


@given(grid=SIZES, tile=SIZES, block_q=st.integers(1, 7), block_kv=st.integers(1, 7))
def test_every_token_has_one_slot(grid, tile, block_q, block_kv):
    layout = Layout(grid, tile, block_q, block_kv)
    assert sorted(layout.order[layout.valid]) == list(range(layout.tokens))
    assert len(layout.order) == layout.slots == layout.q_blocks * block_q
    assert len(layout.kv_order) == layout.kv_slots == layout.kv_blocks * block_kv
    shorter = min(layout.slots, layout.kv_slots)
    np.testing.assert_array_equal(layout.order[:shorter], layout.kv_order[:shorter])
    assert (layout.order[shorter:] < 0).all()
    assert (layout.kv_order[shorter:] < 0).all()


# Each compiles: one token, the model's own order, tiles that fit, that do not along one or all of three, or hold all.
@pytest.mark.parametrize(
    ("grid", "tile", "block"),
    [
        ((1, 1, 1), (1, 1, 1), 1),
        ((2, 3, 5), (1, 1, 1), 7),
        ((1, 1, 1), (2, 3, 4), 5),
        ((4, 2, 3), (2, 1, 3), 6),
        ((5, 4, 3), (1, 3, 1), 4),
        ((4, 5, 2), (5, 1, 1), 2),
        ((3, 5, 4), (2, 4, 3), 7),
        ((2, 3, 4), (5, 5, 5), 3),
    ],
)
def test_arranging_follows_the_order_and_comes_back(grid, tile, block):
    layout = Layout(grid, tile, block)
    x = jnp.arange(1, 2 * layout.tokens + 1, dtype=jnp.int32).reshape(1, layout.tokens, 2)
    found = layout.arrange(x)
    expected = np.where(layout.valid[:, None], np.asarray(x)[0, layout.order], 0)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(layout.restore(found), x)


def test_frame_major_is_the_model_s_order():
    layout = Layout.frame_major((3, 2, 2), 8)
    assert list(layout.order) == [*range(12), -1, -1, -1, -1]


def test_token_major_follows_a_place_through_the_frames():
    layout = Layout.token_major((3, 2, 2), 4)
    assert list(layout.order) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def test_a_tile_is_a_box():
    layout = Layout((4, 4, 6), (2, 2, 3), 12)
    places = np.stack(np.unravel_index(layout.order[:12], layout.grid))
    assert (places.max(axis=1) == [1, 1, 2]).all()
    assert layout.q_blocks == layout.kv_blocks == 8


@pytest.mark.parametrize("grid", [(4, 4, 8), (3, 5, 6)])
def test_a_nested_order_has_boxes_in_boxes(grid):
    layout = Layout(grid, (4, 4, 4), 64, 16, (2, 4, 2))
    for size, box in ((64, (4, 4, 4)), (16, (2, 4, 2))):
        for tokens in layout.order[: layout.slots // size * size].reshape(-1, size):
            places = np.stack(np.unravel_index(tokens[tokens >= 0], grid), axis=1)
            assert not len(places) or (np.ptp(places, axis=0) < box).all()
    assert sorted(layout.order[layout.valid]) == list(range(layout.tokens))
    x = jnp.arange(1, layout.tokens + 1, dtype=jnp.int32)[None, :, None]
    found = layout.arrange(x)
    np.testing.assert_array_equal(found[0, :, 0], layout.order + 1)
    np.testing.assert_array_equal(layout.restore(found), x)


def test_cells_make_up_tiles():
    with pytest.raises(InputError, match="not made of cells"):
        Layout((4, 4, 4), (4, 4, 4), 64, 16, (3, 4, 4))


def test_tiles_that_do_not_fit_are_padded():
    layout = Layout((3, 3, 5), (2, 2, 2), 8)
    assert layout.tiles == (2, 2, 3)
    assert layout.valid.sum() == 45
    assert layout.slots == 96


def test_at_720p_text_blocks_cost_nothing_more():
    """118,800 video tokens end inside a block of 128: whole blocks of video and two of text are as many as one sequence has."""
    layout = Layout.frame_major((33, 45, 80), 128)
    assert layout.kv_blocks + 2 == -(-(118_800 + 256) // 128) == 931


def test_queries_and_keys_are_padded_to_blocks_of_their_own():
    layout = Layout.frame_major((3, 2, 2), 8, 5)
    assert (layout.slots, layout.q_blocks) == (16, 2)
    assert (layout.kv_slots, layout.kv_blocks) == (15, 3)
    assert layout.pairs == 2 * 3
    assert layout.filled.all()
    tiled = Layout((3, 1, 1), (8, 1, 1), 4, 2)  # five of eight slots of its tile are padding
    expected = np.array([[True, True, False, False], [False] * 4])
    np.testing.assert_array_equal(tiled.filled, expected)


def test_empty_sizes_are_refused():
    with pytest.raises(InputError, match="1 or more"):
        Layout((0, 4, 4))
