"""Queries, keys and values where attention wants them: rows, zeros between them, and each head's order of tokens."""

from functools import cache, partial
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import float32_sum

from pallas_kernels import (
    HeadLayout,
    Projection,
    UnsupportedError,
    arranged_heads,
    frame_order,
    rotary_heads,
)
from pallas_kernels.rotary_heads import ROTARY_HEADS

HEADS, SIZE, TEXT = 3, 128, 24
IMPLEMENTATIONS = ["reference", "xla", "tpu@interpret"]
# Frames of 40 positions are three blocks of 16, the last of which begins earlier; of 32, two.
FRAMES = {"a last block that begins earlier": (4, 40), "whole blocks": (4, 32), "odd": (3, 40)}


@pytest.fixture(autouse=True)
def small_blocks(capfd, monkeypatch):
    """Blocks of 16 positions; and no races, of which the interpreter only prints what it has found."""
    monkeypatch.setattr(frame_order, "_ROWS", 64)
    yield
    assert "RACE DETECTED" not in capfd.readouterr().out


def operands(video, *, together, samples=2, dtype=jnp.float32):
    """Video and text as one projection or as two, and the tables."""
    random = np.random.default_rng(video)
    lengths = [video + TEXT] if together else [video, TEXT]
    projections = [
        Projection(
            *(
                jnp.asarray(random.normal(size=shape), dtype)
                for shape in ((samples, length, 3 * HEADS * SIZE), (SIZE,), (SIZE,))
            )
        )
        for length in lengths
    ]
    angles = np.repeat(random.uniform(-4, 4, (video, SIZE // 2)), 2, axis=1)
    return projections, *(jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))


@cache
def plain_heads(video, together):
    """The operands, and their heads in the model's order and length."""
    given = operands(video, together=together)
    run = jax.jit(partial(rotary_heads, heads=HEADS, implementation="reference"))
    return given, run(*given)


def by_hand(rows, first, start, total, order):
    """One head: the first rows in an order, the others from `start` on, zeros elsewhere."""
    out = np.zeros((total, rows.shape[1]), rows.dtype)
    out[:first] = rows[order]
    out[start : start + len(rows) - first] = rows[first:]
    return out


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("video", "layout"),
    [
        (300, HeadLayout(324, 324, 300)),
        (300, HeadLayout(384, 448, 320)),
        (300, HeadLayout(304, 328, 304, apart=True)),
        (1040, HeadLayout(1536, 1152, 1040, apart=True)),
    ],
    ids=["plain", "padded", "apart", "two blocks"],
)
def test_rows(implementation, together, video, layout):
    given, expected = plain_heads(video, together)
    run = jax.jit(
        partial(arranged_heads, layout=layout, heads=HEADS, implementation=implementation)
    )
    check(run(*given), expected, video, layout, np.zeros((2, HEADS), bool))


def check(found, expected, video, layout, second):
    tokens = np.arange(video)
    orders = tokens, tokens.reshape(max(layout.frames, 1), -1).T.reshape(-1)
    places = (layout.text, layout.queries), (layout.text, layout.keys), (layout.text, layout.keys)
    for name, plain, (start, rows) in zip("qkv", expected, places, strict=True):
        one, plain = np.asarray(getattr(found, name)), np.asarray(plain)
        if name == "q" and layout.apart:
            np.testing.assert_allclose(
                found.text, plain[:, :, video:], rtol=0, atol=4 * float32_sum(SIZE)
            )
            plain, start = plain[:, :, :video], video
        assert one.shape[2] == rows
        for sample, head in np.ndindex(second.shape):
            wanted = by_hand(
                plain[sample, head], video, start, rows, orders[int(second[sample, head])]
            )
            np.testing.assert_allclose(
                one[sample, head], wanted, rtol=0, atol=4 * float32_sum(SIZE), err_msg=name
            )
    assert (found.text is None) != layout.apart


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("frames", "positions"), FRAMES.values(), ids=FRAMES)
def test_every_head_has_its_order(implementation, frames, positions):
    """Which heads have the second order is data of one program."""
    video = frames * positions
    given, expected = plain_heads(video, frames == 4)
    layout = HeadLayout(video + 64, video + 96, video + 48, apart=True, frames=frames)
    run = jax.jit(
        partial(arranged_heads, layout=layout, heads=HEADS, implementation=implementation)
    )
    for chosen in ([[0, 1, 1], [0, 0, 0]], [[1, 1, 1], [1, 0, 1]]):
        second = np.array(chosen, np.bool_)
        check(run(*given, second=jnp.asarray(second)), expected, video, layout, second)
    assert run._cache_size() == 1


def test_an_order_changes_no_bit():
    """The kernel permutes what it reads, not what it has computed: bfloat16 values of both orders are the same."""
    frames, positions = FRAMES["whole blocks"]
    video = frames * positions
    given = operands(video, together=True, samples=1, dtype=jnp.bfloat16)
    layout = HeadLayout(video + TEXT, video + TEXT, video, frames=frames)
    run = jax.jit(
        partial(arranged_heads, layout=layout, heads=HEADS, implementation="tpu@interpret")
    )
    plain, other = (run(*given, second=jnp.full((1, HEADS), flag)) for flag in (False, True))
    for one, two in zip(plain[:3], other[:3], strict=True):
        back = two[:, :, :video].reshape(1, HEADS, positions, frames, SIZE).swapaxes(2, 3)
        np.testing.assert_array_equal(one[:, :, :video], back.reshape(1, HEADS, video, SIZE))


def test_layouts_that_do_not_fit():
    projections, cos, sin = operands(64, together=False)
    second = jnp.zeros((2, HEADS), jnp.bool_)
    for layout, flags, message in (
        (HeadLayout(88, 87, 64), None, "no room for 64 tokens of video and 24 of text"),
        (HeadLayout(87, 88, 64), None, "no room"),
        (HeadLayout(88, 88, 63), None, "no room"),
        (HeadLayout(88, 88, 64, frames=5), second, "64 tokens are not 5 frames"),
        (HeadLayout(88, 88, 64, frames=4), None, r"None, expected \(2, 3\)"),
        (HeadLayout(88, 88, 64, frames=4), second[:1], r"\(1, 3\), expected \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            unwrap(arranged_heads)(projections, cos, sin, layout, flags, heads=HEADS)
    layout = HeadLayout(88, 88, 64, frames=16)
    with pytest.raises(UnsupportedError, match="tpu frames of 4 tokens are not whole tiles of 8"):
        arranged_heads(
            projections, cos, sin, layout, second, heads=HEADS, implementation="tpu@interpret"
        )
    assert ROTARY_HEADS.choose(backend="tpu", dtype=jnp.bfloat16, head_dim=128) == "tpu"
