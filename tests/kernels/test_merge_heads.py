"""Heads back to tokens: every row at its place, in the model's order, whatever the order of its head."""

from functools import partial
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import UnsupportedError, frame_order
from pallas_kernels.merge_heads import MERGE_HEADS, merge_heads

HEADS, SIZE, TEXT = 3, 128, 24
IMPLEMENTATIONS = ["reference", "tpu@interpret"]
FRAMES = {"a last block that begins earlier": (4, 40), "whole blocks": (4, 32), "odd": (3, 40)}


@pytest.fixture(autouse=True)
def small_blocks(capfd, monkeypatch):
    """Blocks of 16 positions; and no races, of which the interpreter only prints what it has found."""
    monkeypatch.setattr(frame_order, "_ROWS", 64)
    yield
    assert "RACE DETECTED" not in capfd.readouterr().out


def tensors(rows, dtype=jnp.bfloat16, samples=2):
    random = np.random.default_rng(rows)
    video, text = (
        jnp.asarray(random.normal(size=(samples, HEADS, length, SIZE)), dtype)
        for length in (rows, TEXT)
    )
    return video, text


def by_hand(video, text, lengths, second, frames):
    """One row after another."""
    video, text = np.asarray(video), np.asarray(text)
    samples, heads, _, size = video.shape
    count = sum(lengths) - text.shape[2]
    out = np.zeros((samples, sum(lengths), heads * size), video.dtype)
    for sample, head in np.ndindex(samples, heads):
        for token in range(count):
            row = token
            if second is not None and second[sample][head]:
                frame, position = divmod(token, count // frames)
                row = position * frames + frame
            out[sample, token, head * size : (head + 1) * size] = video[sample, head, row]
        out[sample, count:, head * size : (head + 1) * size] = text[sample, head]
    return np.split(out, np.cumsum(lengths)[:-1], axis=1)


def check(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("count", [300, 1040])
@pytest.mark.parametrize("apart", [True, False])
def test_one_order(implementation, count, apart):
    lengths = (count, TEXT) if apart else (count + TEXT,)
    given = tensors(count + 16)
    run = jax.jit(partial(merge_heads, lengths=lengths, implementation=implementation))
    check(run(*given), by_hand(*given, lengths, None, 0))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("frames", "positions"), FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("chosen", [[[0, 1, 1], [0, 0, 0]], [[1, 1, 1], [1, 0, 1]]], ids=str)
def test_every_head_returns_from_its_order(implementation, frames, positions, chosen):
    count = frames * positions
    lengths = (count, TEXT) if frames == 3 else (count + TEXT,)
    given = tensors(count + 40)
    run = jax.jit(
        partial(merge_heads, lengths=lengths, frames=frames, implementation=implementation)
    )
    found = run(*given, jnp.asarray(chosen, jnp.bool_))
    check(found, by_hand(*given, lengths, chosen, frames))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_head_of_one_sample(implementation):
    given = [x[:, :1] for x in tensors(160, samples=1)]
    second = jnp.ones((1, 1), jnp.bool_)
    found = merge_heads(
        *given, second, lengths=(160 + TEXT,), frames=4, implementation=implementation
    )
    check(found, by_hand(*given, (160 + TEXT,), [[True]], 4))


def test_gradients():
    video, text = tensors(140, jnp.float32)
    second = jnp.asarray([[0, 1, 1], [0, 0, 1]], jnp.bool_)
    slopes = jnp.asarray(
        np.random.default_rng(1).normal(size=(2, 128 + TEXT, HEADS * SIZE)), jnp.float32
    )

    def loss(video, text, implementation):
        (out,) = merge_heads(
            video, text, second, lengths=(128 + TEXT,), frames=4, implementation=implementation
        )
        return (out * slopes).sum()

    found, expected = (
        jax.grad(loss, (0, 1))(video, text, name) for name in reversed(IMPLEMENTATIONS)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.asarray(found[0][:, :, 128:]).any()  # rows that are not read


def test_arguments_that_do_not_go_together():
    given, second = tensors(64), jnp.zeros((2, HEADS), jnp.bool_)
    for lengths, frames, flags, message in (
        ((89,), 0, None, "64 rows do not have the others"),
        ((10,), 0, None, "64 rows"),
        ((88,), 5, second, "in 5 equal frames"),
        ((88,), 4, None, r"None, expected \(2, 3\)"),
        ((88,), 4, second[:1], r"\(1, 3\), expected \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            unwrap(merge_heads)(*given, flags, lengths=lengths, frames=frames)
    with pytest.raises(UnsupportedError, match="divide the 64 of the video"):
        merge_heads(*given, lengths=(30, 58), implementation="tpu@interpret")
    with pytest.raises(UnsupportedError, match="frames of 4 tokens are not whole tiles"):
        merge_heads(*given, second, lengths=(88,), frames=16, implementation="tpu@interpret")
    facts = {"dtype": jnp.bfloat16, "head_dim": 128}
    assert MERGE_HEADS.choose(backend="tpu", **facts) == "tpu"
    assert MERGE_HEADS.choose(backend="cpu", **facts) == "reference"
    assert MERGE_HEADS.choose(backend="tpu", **facts | {"head_dim": 64}) == "reference"
