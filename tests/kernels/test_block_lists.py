import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from pallas_kernels.block_sparse_attention import BlockLists

SIZES = {"block_q": 16, "block_kv": 32}


@st.composite
def block_maps(draw):
    # Few shapes: each is compiled.
    shape = draw(st.sampled_from([(2, 5, 6), (2, 1, 4, 3), (1, 3, 1, 1)]))
    density = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 99))).random(shape) < density


@jax.jit
def said(lists):
    """Its map, its complement's, and its density, in a program for each shape of lists."""
    return lists.block_map(), lists.complement().block_map(), lists.executed_density()


@settings(max_examples=25)
@given(block_maps())
def test_lists_say_what_the_map_says(block_map):
    lists = BlockLists.from_block_map(block_map, **SIZES)
    full = block_map if block_map.ndim == 4 else block_map[None]
    own, others, density = said(lists)
    np.testing.assert_array_equal(own, full)
    np.testing.assert_array_equal(others, ~full)
    np.testing.assert_array_equal(lists.counts, full.sum(axis=-1))
    assert float(density) == pytest.approx(full.mean(), abs=1e-6)
    for indices, count in zip(
        np.asarray(lists.indices).reshape(-1, lists.indices.shape[-1]),
        np.asarray(lists.counts).ravel(),
        strict=True,
    ):
        assert (np.diff(indices[:count]) > 0).all()
        assert set(indices[count:]) <= ({indices[count - 1]} if count else {0})


@settings(max_examples=15)
@given(block_maps(), st.integers(1, 2), st.sampled_from([1, 3]))
def test_coarser_lists_are_unions(block_map, rows, columns):
    full = block_map if block_map.ndim == 4 else block_map[None]
    coarse = BlockLists.from_block_map(block_map, **SIZES).coarsen(16 * rows, 32 * columns)
    found = np.asarray(said(coarse)[0])
    assert found.shape[2:] == (-(-full.shape[2] // rows), -(-full.shape[3] // columns))
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            part = full[..., i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            np.testing.assert_array_equal(found[..., i, j], part.any(axis=(2, 3)))


def test_lists_can_be_made_inside_a_program():
    block_map = np.random.default_rng(0).random((2, 4, 6)) < 0.4
    inside = jax.jit(lambda m: BlockLists.from_block_map(m, **SIZES))(block_map)
    assert inside.indices.shape == (1, 2, 4, 6)
    np.testing.assert_array_equal(inside.block_map()[0], block_map)
    short = jax.jit(lambda m: BlockLists.from_block_map(m, **SIZES, longest=2))(block_map)
    assert short.indices.shape == (1, 2, 4, 2)
    np.testing.assert_array_equal(short.counts[0], np.minimum(block_map.sum(axis=-1), 2))
    first = np.cumsum(block_map, axis=-1) <= 2
    np.testing.assert_array_equal(short.block_map()[0], block_map & first)


@pytest.mark.parametrize(
    ("length", "width", "dense_from"), [(100, 20, None), (96, 1, 90), (65, 200, None)]
)
def test_a_band_lists_the_blocks_it_touches(length, width, dense_from):
    lists = BlockLists.from_band(length, width, **SIZES, dense_from=dense_from)
    q, k = np.arange(length)[:, None], np.arange(length)[None]
    seen = np.abs(q - k) < width
    if dense_from is not None:
        seen = seen | (q >= dense_from) | (k >= dense_from)
    padded = np.pad(seen, ((0, -length % 16), (0, -length % 32)))
    touched = padded.reshape(lists.q_blocks, 16, lists.kv_blocks, 32).any(axis=(1, 3))
    np.testing.assert_array_equal(lists.block_map()[0, 0], touched)


def test_bad_arguments():
    with pytest.raises((ValueError, TypeCheckError)):
        BlockLists.from_block_map(np.ones((2, 2), bool), **SIZES)
    with pytest.raises(ValueError, match="1 or more"):
        BlockLists.from_block_map(np.ones((1, 2, 2), bool), block_q=0, block_kv=1)
    with pytest.raises(ValueError, match="1 or more"):
        BlockLists.from_band(10, 0, **SIZES)
    with pytest.raises(ValueError, match="do not make up 24 x 32"):
        BlockLists.from_block_map(jnp.ones((1, 2, 2), bool), **SIZES).coarsen(24, 32)
