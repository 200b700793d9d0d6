"""Fake-quantized layers of many tokens: made in parts, and nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
from tolerances import FLOAT32_NETWORK

from qsjax.dit.slot import activated_input, gelu, joined_input
from qsjax.quant import Precision, Transform
from qsjax.quant.fake import FakeJoinedLinear, FakeLinear
from qsjax.quant.rotation import start

W4A8 = Precision(weights=4, activations=8)
TOKENS, WIDTH = 2100, 16  # more than one part, the last one shorter


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def layer(kernel, smoothing):
    transform = Transform(smoothing, start("block", WIDTH, 8))
    return FakeLinear(kernel, normal(kernel.shape[1]), transform=transform, precision=W4A8)


def close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=FLOAT32_NETWORK * float(jnp.abs(b).max()))


def test_parts_are_the_whole_and_so_are_their_gradients():
    x, wanted = normal(1, TOKENS, WIDTH), normal(1, TOKENS, 24, seed=1)
    given = (normal(WIDTH, 24, seed=2), jnp.exp(normal(WIDTH, seed=3)))

    def in_parts(x, given):
        y = layer(*given)(x)
        return (y * wanted).sum(), y

    def in_one_piece(x, given):
        one = layer(*given)
        y = jnp.concatenate([one(part) for part in jnp.split(x, 2, axis=1)], axis=1)
        return (y * wanted).sum(), y

    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(x, given)
        for f in (in_parts, in_one_piece)
    )
    close(found, expected)
    assert any("scan" in str(e.primitive) for e in jax.make_jaxpr(in_parts)(x, given).eqns)
    assert not any("scan" in str(e.primitive) for e in jax.make_jaxpr(in_one_piece)(x, given).eqns)


def test_gelu_is_inside():
    attended, hidden = normal(1, TOKENS, WIDTH), normal(1, TOKENS, WIDTH, seed=1)
    one, other = (layer(normal(WIDTH, 8, seed=s), jnp.ones(WIDTH)) for s in (2, 3))
    joined = FakeJoinedLinear(one, other)
    expected = one(attended) + other(gelu(hidden))
    close(jax.jit(lambda a, h: joined(joined_input(joined, a, h)))(attended, hidden), expected)
    close(jax.jit(lambda h: other(activated_input(other, h)))(hidden), other(gelu(hidden)))
