"""Heads that kernels make in the order and in the rows of the lists: the same attention as with heads that XLA arranges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Projection, frame_order
from qsjax.dit.attention import DenseAttention
from qsjax.dit.heads import HeadSource
from qsjax.residual import Gains, Made, Residual, empty_state, picked, refresh, sparse, to_make
from qsjax.sample.drift import attention_drift
from qsjax.sparse import Pattern, Sparsity

GRID, VIDEO, TEXT, HEADS, SIZE = (4, 5, 8), 160, 128, 2, 128
# The video fills neither whole blocks of queries nor of keys: both have rows of zeros between it and the text.
SVG = Sparsity(mask="svg", density=0.5, block_q=256, block_kv=128, profiled_rows=12)
BAND = Sparsity(mask="band", density=0.5, block_q=256, block_kv=128)
TOPK = Sparsity(mask="topk", density=0.5, block_q=128, block_kv=128, tile=(1, 5, 8))
RESIDUAL = Residual(store="float32", rank=0)
KERNEL = "tpu@interpret"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 16 positions, of which a frame has two and a half."""
    monkeypatch.setattr(frame_order, "_ROWS", 64)


def source(rotary, *, together=True):
    random = np.random.default_rng(0)
    lengths = (VIDEO + TEXT,) if together else (VIDEO, TEXT)
    projections = tuple(
        Projection(
            *(
                jnp.asarray(random.normal(size=shape), jnp.float32)
                for shape in ((1, length, 3 * HEADS * SIZE), (SIZE,), (SIZE,))
            )
        )
        for length in lengths
    )
    angles = np.repeat(random.uniform(-4, 4, (VIDEO, SIZE // 2)), 2, axis=1)
    cos, sin = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
    return HeadSource(projections, cos, sin, HEADS, rotary)


def valid():
    return jnp.arange(VIDEO + TEXT)[None] < VIDEO + 100


def gains():
    return Gains(jnp.float32(0.5), jnp.float32(1.0))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def step_of(sparsity, kind, kernels, together, second):
    """A step whose lists, orders and cache are those of a refresh."""
    pattern = Pattern(sparsity, GRID, TEXT)
    state = empty_state(RESIDUAL, pattern, 1, HEADS, SIZE, jnp.float32)
    if kernels:
        made = source(KERNEL, together=together)
        heads = to_make(pattern, made, valid(), KERNEL)
        assert heads is not None
    else:
        made = source("xla", together=together)
        heads = Made(*made.plain(), valid())
    if second is not None:
        state = state._replace(choice=state.choice._replace(second=second))
    step = refresh if kind == "refresh" else sparse
    out, state = step(pattern, RESIDUAL, gains(), heads, state, implementation="reference")
    return out if kernels else made.divided(out), state


@pytest.mark.parametrize(
    ("sparsity", "kind", "second", "together"),
    [
        (SVG, "refresh", None, True),
        (SVG, "refresh", None, False),
        (SVG, "sparse", [[True, False]], False),
        (SVG, "sparse", [[False, True]], True),
        (BAND, "sparse", None, True),
    ],
    ids=["refresh, together", "refresh, apart", "first head", "second head", "one order"],
)
def test_outputs_and_caches_are_the_same(sparsity, kind, second, together):
    second = None if second is None else jnp.asarray(second)
    (found, state), (expected, other) = (
        step_of(sparsity, kind, kernels, together, second) for kernels in (True, False)
    )
    assert [x.shape for x in found] == [x.shape for x in expected]
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    assert np.abs(np.asarray(found[0])).max() > 0.1
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=2e-5)


def test_queries_are_found_in_every_order():
    """And full attention of theirs, to measure drift by, does not depend on the order of keys."""
    pattern, rows = Pattern(SVG, GRID, TEXT), np.array([0, 41, 90, 159])
    shape = (1, VIDEO + TEXT, HEADS, SIZE)
    out = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)

    @jax.jit
    def plain():
        q, k, v = source("xla").plain()
        return q[:, rows], attention_drift(q, k, v, valid(), out, rows)

    @jax.jit
    def arranged(second):
        heads = to_make(pattern, source(KERNEL), valid(), KERNEL)
        assert heads is not None
        choice = pattern.empty(1, HEADS)._replace(second=second)
        ready = heads.ready(pattern, choice)
        tokens, found = ready.arranged(pattern, choice), ready.queries(pattern, choice, rows)
        drift = attention_drift(
            found, tokens.keys, tokens.values, tokens.valid, picked(out, rows), np.arange(len(rows))
        )
        return found, drift

    queries, expected = plain()
    for second in ([[True, False]], [[False, True]]):
        found, drift = arranged(jnp.asarray(second))
        np.testing.assert_allclose(found, queries, rtol=0, atol=1e-5)
        np.testing.assert_allclose(drift, expected, rtol=1e-5)


def test_dense_attention_of_whole_blocks():
    made = source(KERNEL, together=False)
    plain = source("xla", together=False)
    run = jax.jit(lambda: DenseAttention(KERNEL).from_heads(made, valid(), ())[0])
    expected = jax.jit(lambda: DenseAttention("xla_chunked").from_heads(plain, valid(), ())[0])
    for one, two in zip(run(), expected(), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


def test_where_heads_are_made_as_ever():
    svg, topk = (Pattern(one, GRID, TEXT) for one in (SVG, TOPK))
    assert to_make(svg, source("auto"), valid(), KERNEL) is None  # this is a CPU
    assert to_make(svg, source("xla"), valid(), KERNEL) is None
    assert to_make(svg, source(KERNEL), valid(), "xla") is None
    assert (
        to_make(topk, source(KERNEL), valid(), KERNEL) is None
    )  # boxes are no order of the kernel's
    made = to_make(svg, source(KERNEL), valid(), KERNEL)
    assert made is not None
    assert (made.layout.queries, made.layout.text, made.layout.keys) == (256, 256, 384)
    odd = Pattern(SVG, (4, 5, 7), TEXT)
    short = source(KERNEL)
    short = HeadSource(short.projections, short.cos[:140], short.sin[:140], HEADS, KERNEL)
    assert to_make(odd, short, valid(), KERNEL) is None  # frames of 35 tokens
