"""The bundled model must show what the project is about: quantization hurts some, sparsity alone destroys."""

import jax.numpy as jnp
import numpy as np
import pytest
from compression_signals import block_sparse, fake_quantize, signals

import qsjax
from qsjax.dit.attention import dense_attention


@pytest.mark.parametrize(
    ("frames", "steps"),
    [
        pytest.param(5, 10, marks=pytest.mark.whole),
        pytest.param(33, 30, marks=pytest.mark.slow),
    ],
)
def test_signals(tiny_checkpoint, frames, steps):
    pipeline = qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)
    found = signals(pipeline, 3, frames=frames, steps=steps)
    mean = {name: values.mean() for name, values in found.items()}
    assert 18 <= mean["W4A8"] <= 32
    assert mean["sparse 15 %"] < 18  # 15 over many clips, +- 1 over three
    assert mean["twice the steps"] >= 35
    assert mean["another seed"] < 20


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_block_sparse_attention_keeps_the_best_tiles(density):
    random = np.random.default_rng(0)
    grid = (3, 8, 8)  # tiles of 16 tokens, twelve of them
    q, k, v = (jnp.asarray(random.standard_normal((1, 196, 2, 8)), jnp.float32) for _ in range(3))
    valid = jnp.arange(196)[None] < 195
    dense, _ = dense_attention(q, k, v, valid)
    sparse, _ = block_sparse(grid, density)(q, k, v, valid, ())
    agree = np.isclose(sparse, dense, atol=1e-5).all(axis=(0, 2, 3))
    assert agree[192:].all()  # text sees everything
    assert agree[:192].all() == (density == 1.0)


def test_fake_quantization_has_2_to_the_bits_levels():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 1000)), jnp.float32)
    for row in np.asarray(fake_quantize(x, 4, -1)):
        assert 8 < len(np.unique(row)) <= 16
    error = jnp.abs(fake_quantize(x, 8, -1) - x).max(axis=-1)
    assert (error <= jnp.abs(x).max(axis=-1) / 127 * 0.501).all()
