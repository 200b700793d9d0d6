"""Patterns at a size: dense at density 1, one program for all prompts, head types found, padding never seen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from tolerances import FLOAT32_NETWORK

from pallas_kernels import block_sparse_attention, targets
from pallas_kernels.targets import TARGETS
from qsjax.bench.sample import CONFIG, LATENTS
from qsjax.dit.attention import dense_attention
from qsjax.errors import InputError
from qsjax.sample import pattern_for
from qsjax.settings import SparsePlan
from qsjax.sparse import FAMILIES, Choice, Pattern, Sparsity
from qsjax.sparse.shares import own

GRID, TEXT = (3, 4, 6), 5


def config(mask, **changes):
    tile = (1, 2, 3) if mask in ("sta", "topk", "topp") else (1, 1, 1)
    settings = {"block": 6, "tile": tile, "mass": 1.0, "profiled_rows": 12}
    return Sparsity(mask=mask, **(settings | changes))


def tensors(seed=0, grid=GRID, text=TEXT, batch=2):
    random = np.random.default_rng(seed)
    length = int(np.prod(grid)) + text
    return [
        jnp.asarray(random.standard_normal((batch, length, 2, 8)), jnp.float32) for _ in range(3)
    ]


def validity(lengths, video=72, text=TEXT):
    there = np.arange(text)[None] < np.array(lengths)[:, None]
    return jnp.concatenate([jnp.ones((len(lengths), video), jnp.bool_), jnp.asarray(there)], axis=1)


def attend(pattern, q, k, v, kv_valid):
    """Attention of the video's queries as a sampler runs it."""
    choice = pattern.choose(q, k, v, kv_valid)
    video = pattern.layouts[0].tokens
    heads_first = [x.swapaxes(1, 2) for x in (q, k, v)]
    text = heads_first[0][:, :, video:]
    arranged = (
        pattern.orders.queries(heads_first[0], choice.second),
        *(pattern.orders.keys(x, choice.second) for x in heads_first[1:]),
    )
    q, k, v = (x.swapaxes(1, 2) for x in arranged)
    out = block_sparse_attention(
        q,
        k,
        v,
        pattern.lists(choice),
        kv_valid=pattern.orders.valid(kv_valid),
        implementation="reference",
    )
    out = pattern.orders.restore(out.swapaxes(1, 2), text, choice.second).swapaxes(1, 2)
    return out[:, :video]


@pytest.mark.parametrize("mask", FAMILIES)
@pytest.mark.parametrize("grid", [GRID, (5, 3, 7)])
def test_density_one_is_dense_attention(mask, grid):
    video = int(np.prod(grid))
    pattern = Pattern(config(mask, density=1.0), grid, TEXT)
    q, k, v = tensors(grid=grid)
    kv_valid = validity([5, 2], video)
    expected, _ = dense_attention(q, k, v, kv_valid)
    found = jax.jit(partial(attend, pattern))(q, k, v, kv_valid)
    np.testing.assert_allclose(found, expected[:, :video], atol=FLOAT32_NETWORK)


@pytest.mark.parametrize("mask", FAMILIES)
def test_one_program_serves_all_prompts_and_padding_is_not_seen(mask):
    pattern = Pattern(config(mask, density=0.4), GRID, TEXT)
    q, k, v = tensors()
    run = jax.jit(partial(attend, pattern))
    with compilations() as compiled:
        for lengths in ([5, 5], [1, 3]):
            kv_valid = validity(lengths)
            out = run(q, k, v, kv_valid)
            loud = [jnp.where(kv_valid[:, :, None, None], x, 1e4) for x in (k, v)]
            np.testing.assert_array_equal(run(q, *loud, kv_valid), out)
    assert compiled["attend"] == 1


def test_an_empty_choice_has_the_shapes_of_one():
    for mask in FAMILIES:
        pattern = Pattern(config(mask, density=0.4), GRID, TEXT)
        q, k, v = tensors()
        choice = jax.eval_shape(pattern.choose, q, k, v, validity([5, 2]))
        empty = jax.eval_shape(lambda pattern=pattern: pattern.empty(2, 2))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), choice) == jax.tree.map(
            lambda x: (x.shape, x.dtype), empty
        )


def test_profiling_tells_spatial_heads_from_temporal_ones():
    """Head 0 looks at its own frame, head 1 at its own place in all frames."""
    grid = (8, 8, 8)
    t, y, x = np.unravel_index(np.arange(512), grid)
    frame, place = np.eye(8)[t], np.eye(64)[y * 8 + x]
    q = np.zeros((1, 512 + 8, 2, 72), np.float32)
    q[0, :512, 0, :8], q[0, :512, 1, 8:] = 9 * frame, 9 * place
    random = np.random.default_rng(0)
    v = jnp.asarray(random.standard_normal(q.shape), jnp.float32)
    q = jnp.asarray(q)
    pattern = Pattern(Sparsity(mask="svg", density=0.2, block=16), grid, 8)
    choice = jax.jit(pattern.choose)(q, q, v, jnp.arange(520)[None] < 515)
    assert choice.second.tolist() == [[False, True]]
    q = q.swapaxes(1, 2)
    video, text = q[:, :, :512], q[:, :, 512:]
    arranged = pattern.orders.queries(q, choice.second)
    np.testing.assert_array_equal(arranged[:, 0], video[:, 0])
    np.testing.assert_array_equal(arranged[:, 1], pattern.layouts[1].arrange(video[:, 1]))
    np.testing.assert_array_equal(pattern.orders.restore(arranged, text, choice.second), q)
    keys = pattern.orders.keys(q, choice.second)
    np.testing.assert_array_equal(keys[:, :, :512], arranged)
    np.testing.assert_array_equal(keys[:, :, 512:], text)


def test_a_sink_is_in_every_list():
    for mask in ("band", "topk"):
        pattern = Pattern(config(mask, density=0.2, tile=(1, 1, 1), sink_frames=1), GRID, TEXT)
        q, k, v = tensors()
        lists = pattern.lists(jax.jit(pattern.choose)(q, k, v, validity([5, 2])))
        assert lists.block_map()[..., :4].all()


def test_text_rows_see_everything():
    pattern = Pattern(config("svg", density=0.2), GRID, TEXT)
    lists = pattern.text_lists()
    assert float(lists.executed_density()) == 1
    assert lists.kv_blocks == 13
    assert (lists.block_q, lists.q_blocks) == (6, 1)
    # Not a whole block of queries for a short text, where blocks are large.
    large = Pattern(Sparsity(mask="band", block=128), (8, 8, 8), 20).text_lists()
    assert (large.block_q, large.q_blocks, large.kv_blocks) == (32, 1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "shares above 0"),
        ({"density": 15.0}, "shares above 0"),
        ({"block": -1}, "0 or more"),
        ({"block_q": -1}, "0 or more"),
        ({"block_kv": -1}, "0 or more"),
        ({"mask": "svg", "tile": (1, 2, 2)}, "orders of its own"),
        ({"mask": "svg", "sink_frames": 1}, "token-major order"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Sparsity(**options)


@pytest.mark.parametrize(
    ("grid", "block"), [((33, 45, 80), 128), ((9, 8, 8), 16), ((8, 16, 16), 64), ((1, 2, 2), 16)]
)
def test_blocks_follow_the_number_of_tokens(grid, block):
    config = Pattern(Sparsity(mask="band"), grid, TEXT).config
    assert (config.block_q, config.block_kv) == (block, block)


@pytest.mark.parametrize(
    ("options", "tokens", "blocks"),
    [
        ({}, 33 * 45 * 80, (512, 128)),
        ({}, 8192, (512, 128)),
        ({}, 8191, (128, 128)),
        ({}, 576, (16, 16)),
        ({"block_kv": 128}, 576, (128, 128)),
        ({"block_q": 1024}, 8192, (1024, 128)),
        ({"block": 64}, 8192, (64, 64)),
        ({"mask": "sta", "tile": (6, 8, 8)}, 8192, (384, 128)),
        ({"mask": "sta", "tile": (1, 8, 16)}, 8192, (128, 128)),
    ],
)
def test_a_tpu_gets_many_queries_in_a_block(options, tokens, blocks):
    sized = Sparsity(**options).sized(tokens, "tpu")
    assert (sized.block_q, sized.block_kv) == blocks
    assert sized.sized(tokens, "cpu") == sized
    if not options:
        for backend in ("cpu", "gpu"):
            here = Sparsity().sized(tokens, backend)
            assert here.block_q == here.block_kv == min(blocks)


def test_a_pattern_is_made_for_the_target_that_is_compiled_for():
    made = {}
    for name in ("v5e", "h100"):
        with targets.assumed(TARGETS[name]):
            made[name] = pattern_for(SparsePlan(), CONFIG, LATENTS, TEXT)  # 8,192 tokens
    shapes = {name: pattern.lists(Choice()).counts.shape[2] for name, pattern in made.items()}
    assert shapes == {"v5e": 16, "h100": 64}
    assert made["v5e"].text_lists().block_q == 16


# The tiles of sta are made of whole blocks.
RECTANGULAR = [*((mask, (12, 3)) for mask in FAMILIES), ("svg", (4, 6)), ("topk", (8, 3))]


@pytest.mark.parametrize(("mask", "blocks"), RECTANGULAR)
def test_at_density_one_blocks_of_any_shape_are_dense_attention(mask, blocks):
    grid, (block_q, block_kv) = (3, 4, 7), blocks
    tile = (1, 2, 6) if mask in ("sta", "topk", "topp") else (1, 1, 1)
    changes = {"density": 1.0, "tile": tile, "block": 0, "block_q": block_q, "block_kv": block_kv}
    pattern = Pattern(config(mask, **changes), grid, TEXT)
    q, k, v = tensors(grid=grid)
    kv_valid = validity([5, 2], 84)
    expected, _ = dense_attention(q, k, v, kv_valid)
    found = jax.jit(partial(attend, pattern))(q, k, v, kv_valid)
    np.testing.assert_allclose(found, expected[:, :84], atol=FLOAT32_NETWORK)


@pytest.mark.parametrize("mask", ["topk", "topp"])
def test_chosen_lists_of_wide_blocks_hold_their_own_and_no_more_than_density(mask):
    changes = {"density": 0.34, "block": 0, "block_q": 12, "block_kv": 3, "tile": (1, 1, 1)}
    pattern = Pattern(config(mask, **changes), GRID, TEXT)
    lists = pattern.lists(jax.jit(pattern.choose)(*tensors(), validity([5, 2])))
    seen = np.asarray(lists.block_map())[..., :24]  # 6 blocks of queries, 24 of keys
    assert seen.shape == (2, 2, 6, 24)
    assert seen[..., own(pattern.layouts[0])].all()
    assert seen.sum(axis=-1).max() == round(0.34 * 24)
