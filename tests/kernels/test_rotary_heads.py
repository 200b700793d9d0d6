"""Queries, keys and values from a fused projection, against numpy in float64."""

from functools import partial
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import BFLOAT16_CAST, float32_sum

from pallas_kernels import UnsupportedError
from pallas_kernels.rotary_heads import ROTARY_HEADS, Projection, rotary_heads

ALL = ["reference", "xla", "tpu@interpret"]
HEADS, SIZE = 2, 128


@partial(jax.jit, static_argnames="implementation")
def split(projected, q_scale, k_scale, cos, sin, *, implementation):
    """One projection of all tokens."""
    projections = [Projection(projected, q_scale, k_scale)]
    return rotary_heads(projections, cos, sin, heads=HEADS, implementation=implementation)


@pytest.fixture(autouse=True)
def no_races(capfd):
    """The interpreter only prints what it has found."""
    yield
    assert "RACE DETECTED" not in capfd.readouterr().out


def operands(length, tokens, *, more=0, size=SIZE, dtype=jnp.float32):
    random = np.random.default_rng(length + tokens)
    projected = random.normal(size=(2, length, 3 * HEADS * size + more))
    projected[..., 3 * HEADS * size :] = np.nan
    angles = np.repeat(random.uniform(-4, 4, (tokens, size // 2)), 2, axis=1)
    scales = random.uniform(0.5, 2, (2, size))
    tables = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
    return *(jnp.asarray(x, dtype) for x in (projected, *scales)), *tables


def by_hand(projected, q_scale, k_scale, cos, sin):
    """One head and one pair after another, in float64."""
    projected, q_scale, k_scale, cos, sin = (
        np.asarray(x, np.float64) for x in (projected, q_scale, k_scale, cos, sin)
    )
    size, tokens = len(q_scale), len(cos)
    out = np.zeros((3, len(projected), HEADS, projected.shape[1], size))
    for part in range(3):
        for head in range(HEADS):
            start = (part * HEADS + head) * size
            x = projected[..., start : start + size]
            if part < 2:
                x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
                x = x * (q_scale, k_scale)[part]
                turned = x.copy()
                for i in range(0, size, 2):
                    a, b = x[:, :tokens, i], x[:, :tokens, i + 1]
                    turned[:, :tokens, i] = a * cos[:, i] - b * sin[:, i]
                    turned[:, :tokens, i + 1] = b * cos[:, i] + a * sin[:, i]
                x = turned
            out[part, :, head] = x
    return out


# One block and two; with and without text, text alone; the last rotated token inside and at the end of a block.
@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(
    ("length", "tokens", "more"), [(1, 1, 0), (40, 40, 0), (40, 29, 64), (33, 0, 0), (300, 256, 0), (300, 280, 128)]
)  # fmt: skip
def test_every_channel(implementation, length, tokens, more):
    given = operands(length, tokens, more=more)
    found = split(*given, implementation=implementation)
    expected = by_hand(*given)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=4 * float32_sum(SIZE))
    np.testing.assert_array_equal(found[2], expected[2])


@pytest.mark.parametrize("size", [2, 6, 64])
def test_other_sizes_of_heads(size):
    given = operands(20, 15, size=size)
    found = split(*given, implementation="auto")
    for one, other in zip(found, by_hand(*given), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=4 * float32_sum(SIZE))


@pytest.mark.parametrize("implementation", ALL)
def test_bfloat16_is_rounded_after_the_norm_its_scale_and_the_rotation(implementation):
    given = operands(40, 29, dtype=jnp.bfloat16)
    found = split(*given, implementation=implementation)
    for one, other in zip(found, by_hand(*given), strict=True):
        assert one.dtype == jnp.bfloat16
        # Two roundings reach both channels of a pair, the third one: relative to the pair.
        pair = np.abs(other).reshape(*other.shape[:-1], -1, 2).sum(axis=-1, keepdims=True)
        pair = np.broadcast_to(pair, (*pair.shape[:-1], 2)).reshape(other.shape)
        error = np.abs(np.asarray(one, np.float64) - other)
        assert (error <= 3 * BFLOAT16_CAST * pair + 1e-30).all()


@pytest.mark.parametrize("implementation", ["xla", "tpu@interpret"])
@pytest.mark.parametrize("tokens", [0, 29])
def test_gradients(implementation, tokens):
    given = operands(40, tokens)
    wanted = np.random.default_rng(1).normal(size=(3, 2, HEADS, 40, SIZE)).astype(np.float32)

    def loss(projected, q_scale, k_scale, implementation):
        parts = split(projected, q_scale, k_scale, *given[3:], implementation=implementation)
        return sum((one * w).sum() for one, w in zip(parts, wanted, strict=True))

    found, expected = (
        jax.grad(loss, (0, 1, 2))(*given[:3], name) for name in (implementation, "reference")
    )
    for one, other in zip(found, expected, strict=True):
        size = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=4 * float32_sum(80) * size)


# The text begins at a block or inside a tile, ends inside one; three parts, of which the second is rotated in part.
@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(
    ("lengths", "tokens"), [((256, 48), 256), ((48, 300), 48), ((45, 32), 45), ((32, 16, 48), 40)]
)
def test_projections_that_follow_one_another(implementation, lengths, tokens):
    projections, expected, start = [], [], 0
    for n, length in enumerate(lengths):
        rotated = min(max(tokens - start, 0), length)
        given = operands(length, rotated, more=64 * n)
        projections.append((Projection(*given[:3]), given[3:]))
        expected.append(by_hand(*given))
        start += length
    cos, sin = (
        jnp.concatenate(tables) for tables in zip(*(t for _, t in projections), strict=True)
    )

    @jax.jit
    def run(projections, cos, sin):
        return rotary_heads(projections, cos, sin, heads=HEADS, implementation=implementation)

    found = run([projection for projection, _ in projections], cos, sin)
    for one, other in zip(found, np.concatenate(expected, axis=3), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=4 * float32_sum(SIZE))


def test_arguments_that_do_not_go_together():
    projected, q_scale, k_scale, cos, sin = operands(20, 15)
    one = Projection(projected, q_scale, k_scale)
    for projections, tables, message in (
        ([one._replace(projected=projected[..., 1:])], (cos, sin), "767.*2 heads of 128"),
        ([one, one._replace(projected=projected[:1])], (cos, sin), "expected 2 samples"),
        ([one._replace(k_scale=k_scale[:2])], (cos, sin), "q_scale and k_scale"),
        ([one], (cos, sin[:3]), "sin has shape"),
        ([one], (cos[:, :64], sin), "cos has shape"),
        ([one._replace(projected=projected[:, :3])], (cos, sin), "up to 3 tokens"),
        ([Projection(projected, q_scale[:1], k_scale[:1])], (cos[:, :1], sin[:, :1]), "no pairs"),
    ):
        # Unwrapped: outside of this suite nothing checks annotations.
        with pytest.raises(ValueError, match=message):
            unwrap(rotary_heads)(projections, *tables, heads=HEADS)
    with pytest.raises(UnsupportedError, match="tpu head size 64 is not 128"):
        split(*operands(20, 15, size=64), implementation="tpu@v5e")
    facts = {"dtype": jnp.bfloat16, "head_dim": 128}
    assert ROTARY_HEADS.choose(backend="tpu", **facts) == "tpu"
    assert ROTARY_HEADS.choose(backend="gpu", **facts) == "xla"
    assert ROTARY_HEADS.choose(backend="cpu", **facts) == "xla"
