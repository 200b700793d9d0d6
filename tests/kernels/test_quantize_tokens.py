from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import float32_sum

from pallas_kernels import UnsupportedError
from pallas_kernels.quantize_tokens import QUANTIZE_TOKENS, quantize_tokens

quantize = jax.jit(
    quantize_tokens, static_argnames=("norm", "activation", "bits", "clip", "implementation")
)
"""One program each, where operations one by one would be twenty."""

ALL = ["reference", "xla", "tpu@interpret", "gpu@interpret"]


def operands(m=70, c=384, groups=1, rotated=128, seed=0):
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.normal(size=(rotated, rotated)))[0] if rotated else None
    floats = {
        "shift": random.normal(size=(groups, c)),
        "scale": random.normal(size=(groups, c)),
        "smoothing": random.uniform(0.5, 2, c),
        "rotation": rotation,
    }
    as_arrays = {
        name: None if x is None else jnp.asarray(x, jnp.float32) for name, x in floats.items()
    }
    return jnp.asarray(random.normal(size=(m, c)), jnp.float32), as_arrays


def by_hand(x, shift, scale, smoothing, rotation):
    """numpy, float64, from the definition: everything before the rounding."""
    x = np.asarray(x, np.float64)
    y = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    repeats = len(x) // len(scale)
    scale, shift = (np.repeat(np.asarray(a, np.float64), repeats, 0) for a in (scale, shift))
    y = (y * (1 + scale) + shift) / np.asarray(smoothing, np.float64)
    if rotation is None:
        return y
    rotation = np.asarray(rotation, np.float64)
    return (y.reshape(len(y), -1, len(rotation)) @ rotation).reshape(y.shape)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(
    ("bits", "groups", "rotated"), [(8, 1, 128), (4, 1, 128), (6, 2, 384), (8, 2, 384), (4, 5, 0)]
)
def test_integers_and_scales(implementation, bits, groups, rotated):
    if implementation.startswith("gpu") and rotated == 384:
        rotated = 64  # a power of two
    x, given_ = operands(groups=groups, rotated=rotated)
    integers, scales = quantize(
        x, norm="layer", **given_, bits=bits, clip=0.9, implementation=implementation
    )
    y, limit = by_hand(x, **given_), 2 ** (bits - 1) - 1
    size = np.abs(y).max(axis=1)
    np.testing.assert_allclose(scales, 0.9 * size / limit, rtol=8 * float32_sum(384))
    exact = np.clip(y / (0.9 * size / limit)[:, None], -limit - 1, limit)
    # A rounding error before a tie may move an integer by one; nothing else may.
    assert np.abs(np.asarray(integers, np.float64) - exact).max() <= 0.5 + 1e-3
    assert integers.dtype == jnp.int8


# The kernel takes eight slices in a step of its loop; less than a step is left after it, or nothing.
@pytest.mark.parametrize("slices", [8, 11, 16])
def test_a_tpus_loop_over_slices(slices):
    channels = 128 * slices
    x, given_ = operands(m=32, c=channels)
    integers, scales = quantize(x, norm="layer", **given_, implementation="tpu@interpret")
    y = by_hand(x, **given_)
    size = np.abs(y).max(axis=1)
    np.testing.assert_allclose(scales, size / 127, rtol=8 * float32_sum(channels))
    exact = y / (size / 127)[:, None]
    assert np.abs(np.asarray(integers, np.float64) - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("implementation", ALL)
def test_the_input_of_an_mlps_second_matmul(implementation):
    x, given_ = operands()
    given_ = {name: given_[name] for name in ("smoothing", "rotation")}
    integers, scales = quantize(x, activation="gelu_tanh", **given_, implementation=implementation)
    x64 = np.asarray(x, np.float64)
    y = 0.5 * x64 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x64 + 0.044715 * x64**3)))
    y = y / np.asarray(given_["smoothing"], np.float64)
    y = (y.reshape(len(y), -1, 128) @ np.asarray(given_["rotation"], np.float64)).reshape(y.shape)
    back = np.asarray(integers, np.float64) * np.asarray(scales)[:, None]
    assert (np.abs(back - y) <= 0.5001 * np.asarray(scales)[:, None]).all()


@pytest.mark.parametrize("implementation", ALL)
def test_rows_of_zeros_and_extreme_rows(implementation):
    x = jnp.zeros((4, 128)).at[1].set(1e-38).at[2].set(3e38).at[3, 5].set(-7.0)
    integers, scales = quantize(x, implementation=implementation)
    assert np.isfinite(np.asarray(scales)).all()
    assert not np.asarray(integers[0]).any()
    assert (np.asarray(integers[2]) == 127).all()
    assert integers[3, 5] == -127


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(("norm", "rotated"), [("none", 0), ("none", 128), ("layer", 128)])
def test_what_is_not_finite_is_seen_in_the_scale(implementation, norm, rotated):
    x, given_ = operands(m=8, c=256, rotated=rotated)
    for row, broken in {2: np.nan, 3: np.inf, 6: -np.inf}.items():
        x = x.at[row, 200].set(broken)
    _, scales = quantize(x, norm=norm, **given_, implementation=implementation)
    assert np.flatnonzero(~np.isfinite(scales)).tolist() == [2, 3, 6]


# Each number is compiled: one row, a few, an odd one below and above sizes that divide.
@pytest.mark.parametrize("rows", [1, 2, 31, 300])
@pytest.mark.parametrize("groups", [1, 3])
def test_any_number_of_rows(rows, groups):
    for seed in range(3):
        x, given_ = operands(m=rows * groups, c=128, groups=groups, seed=seed)
        expected = quantize(x, norm="layer", **given_, implementation="reference")
        found = quantize(x, norm="layer", **given_, implementation="xla")
        np.testing.assert_allclose(found[1], expected[1], rtol=8 * float32_sum(128))
        difference = np.asarray(found[0], np.int32) - np.asarray(expected[0], np.int32)
        assert np.abs(difference).max() <= 1
        assert (difference != 0).mean() < 1e-3


def test_scales_have_gradients():
    x, given_ = operands(m=4)

    @jax.jit
    def loss(smoothing):
        return quantize_tokens(
            x, norm="layer", **{**given_, "smoothing": smoothing}, implementation="xla"
        )[1].sum()

    smoothing = given_["smoothing"]
    direction = jax.random.normal(jax.random.key(1), smoothing.shape)
    slope = float((jax.jit(jax.grad(loss))(smoothing) * direction).sum())
    up, down = (loss(smoothing + sign * 1e-3 * direction) for sign in (1, -1))
    assert slope == pytest.approx(float(up - down) / 2e-3, rel=2e-2)


def test_settings_that_do_not_go_together():
    x, given_ = operands()
    for name, value, message in (
        ("norm", "rms", "none of none, layer"),
        ("bits", 5, "none of 4, 6, 8"),
        ("activation", "relu", "none of none, gelu_tanh"),
        ("shift", jnp.ones((3, 384)), "do not divide 70 rows"),
        ("scale", jnp.ones(128), "scale"),
        ("smoothing", jnp.ones(128), "smoothing"),
        ("rotation", jnp.eye(100), "does not divide 384 channels"),
    ):
        # Unwrapped: outside of this suite nothing checks annotations.
        with pytest.raises(ValueError, match=message):
            unwrap(quantize_tokens)(x, **{**given_, name: value})
    with pytest.raises(UnsupportedError, match="tpu 100 channels are not a multiple of 128"):
        quantize_tokens(x[:, :100], implementation="tpu@v5e")
    facts = {"dtype": jnp.bfloat16, "channels": 3072, "rotated": 128}
    assert QUANTIZE_TOKENS.choose(backend="tpu", **facts) == "tpu"
    assert QUANTIZE_TOKENS.choose(backend="cpu", **facts) == "xla"
    assert QUANTIZE_TOKENS.choose(backend="gpu", **facts) == "xla"
