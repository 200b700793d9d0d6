"""The layers against plain formulas: forms of the convolution, its gradient, norms, attention, upsampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from vae_pairs import latent, pair

from pallas_kernels import targets
from qsjax.params import map_parameters, parameters
from qsjax.vae import Moments, abstract_vae
from qsjax.vae.attention import causal_attention
from qsjax.vae.convolution import convolve, copied, gathered, taps, whole
from qsjax.vae.layers import GroupNorm, upsample


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_convolution_is_causal_and_replicates_borders(stride, frames):
    x, kernel = normal(2, frames, 4, 6, 3), normal(3, 3, 3, 3, 5, seed=1)
    found = convolve(jnp.asarray(x), jnp.asarray(kernel), stride)
    padded = torch.nn.functional.pad(
        torch.from_numpy(x).permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0), mode="replicate"
    )
    weight = torch.from_numpy(kernel).permute(4, 3, 0, 1, 2)
    expected = torch.nn.functional.conv3d(padded, weight, stride=stride).permute(0, 2, 3, 4, 1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("sides", [(2, 0, 1, 1, 0), (0, 3, 2, 0, 0)])
@pytest.mark.parametrize("pad", [copied, gathered])
def test_borders_are_replicated_and_collect_their_gradients(pad, sides):
    x, sides = normal(2, 1, 3, 4, 2), tuple((n, n // 2) for n in sides)
    found, back = jax.vjp(lambda x: pad(x, sides), jnp.asarray(x))
    np.testing.assert_array_equal(found, np.pad(x, sides, mode="edge"))
    gradient = normal(*found.shape, seed=1)
    came_from, expected = np.pad(np.arange(x.size).reshape(x.shape), sides, mode="edge"), x * 0
    np.add.at(expected.reshape(-1), came_from.reshape(-1), gradient.reshape(-1))
    np.testing.assert_allclose(back(jnp.asarray(gradient))[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_both_forms_of_the_convolution_agree(stride):
    x, kernel = jnp.asarray(normal(2, 5, 5, 7, 3)), jnp.asarray(normal(3, 3, 3, 3, 4, seed=1))
    expected = whole(x, kernel, stride)
    np.testing.assert_allclose(taps(x, kernel, stride), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("target", "products"), [("cpu", 3), ("v5e", 3), ("h100", 1)])
def test_the_form_of_the_convolution_is_the_targets(target, products):
    x, kernel = normal(1, 2, 4, 4, 3), normal(3, 3, 3, 3, 4)
    with targets.assumed(targets.TARGETS[target]):
        made = str(jax.make_jaxpr(lambda x, kernel: convolve(x, kernel))(x, kernel))
    assert made.count("conv_general_dilated[") == products


def test_rounded_sums_of_taps_cost_little_precision(monkeypatch):
    """In bfloat16 `taps` rounds three sums where `whole` rounds one; among norms and activations it is a tenth of the error."""
    _, vae = pair("three levels, 4x4x4")
    z = latent(vae.config, 2, 4, 4)
    weights = parameters(vae)
    half = map_parameters(
        lambda name, leaf: weights[name].astype(leaf.dtype),
        abstract_vae(vae.config, jnp.dtype(jnp.bfloat16)),
    )

    def decoded(vae):
        """In a program of its own, which knows the form of now."""
        return np.asarray(jax.jit(lambda vae, z: vae.decode_tile(z))(vae, z))

    exact = decoded(vae)

    def error(form):
        monkeypatch.setattr("qsjax.vae.convolution.taps", form)
        return np.sqrt(np.mean((decoded(half) - exact) ** 2))

    once, each = error(whole), error(taps)
    assert once < each < 1.25 * once < 0.1 * np.std(exact)


def test_group_norm_survives_a_large_mean():
    x = normal(2, 3, 4, 5, 6) + 1000
    norm = GroupNorm(6, 3, dtype=jnp.dtype(jnp.float32))
    norm.scale[...], norm.bias[...] = jnp.asarray(normal(6)), jnp.asarray(normal(6, seed=1))
    expected = torch.nn.functional.group_norm(
        torch.from_numpy(x).double().permute(0, 4, 1, 2, 3),
        3,
        torch.from_numpy(normal(6)).double(),
        torch.from_numpy(normal(6, seed=1)).double(),
        eps=1e-6,
    ).permute(0, 2, 3, 4, 1)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected.numpy(), rtol=0, atol=5e-4)


def test_group_norm_has_float32_statistics_in_bfloat16():
    x = jnp.asarray(normal(1, 9, 8, 8, 4) + 30).astype(jnp.bfloat16)
    y = GroupNorm(4, 2, dtype=jnp.dtype(jnp.bfloat16))(x)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(y, np.float32).reshape(-1, 2, 2)
    np.testing.assert_allclose(wide.mean(axis=(0, 2)), 0, atol=2e-3)
    np.testing.assert_allclose(wide.std(axis=(0, 2)), 1, atol=2e-3)


def test_attention_sees_whole_frames_up_to_its_own():
    frames, cells = 4, 6
    q, k, v = (normal(2, frames * cells, 8, seed=seed) for seed in range(3))
    found = causal_attention(*map(jnp.asarray, (q, k, v)), frames=frames)
    frame = np.arange(frames * cells) // cells
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)),
        attn_mask=torch.from_numpy(frame[:, None] >= frame[None, :]),
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_upsampling_keeps_the_first_frame_single():
    x = jnp.arange(2 * 3 * 2).reshape(1, 2, 3, 2, 1)
    y = upsample(x.astype(jnp.float32), (2, 1, 2))[0, ..., 0]
    assert y.shape == (3, 3, 4)
    np.testing.assert_array_equal(y[0], np.repeat(x[0, 0, ..., 0], 2, axis=1))
    np.testing.assert_array_equal(y[1], y[2])


def test_moments():
    moments = Moments(jnp.full((1, 2, 3, 4, 4), 5.0), jnp.full((1, 2, 3, 4, 4), -2.0))
    np.testing.assert_array_equal(moments.mode(), moments.mean)
    sample = moments.sample(jax.random.key(0))
    np.testing.assert_array_equal(sample, moments.sample(jax.random.key(0)))
    assert abs(float((sample - 5).std()) - np.exp(-1)) < 0.1
