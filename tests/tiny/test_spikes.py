"""Activation spikes: the same function, with large values for some tokens at some times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import FLOAT32_NETWORK

import qsjax
from qsjax.dit import slot
from qsjax.errors import InputError
from qsjax.quant.quantizer import fake_tokens, fake_weight
from qsjax.tiny import spikes, words

TIMES = (990.0, 500.0, 40.0)


@pytest.fixture(scope="module")
def dit(tiny_checkpoint):
    return qsjax.load_dit(tiny_checkpoint, dtype=jnp.float32)


@pytest.fixture(scope="module")
def spiked(dit):
    return spikes.spiked(dit)


def inputs():
    prompt = words.encode(["a red circle moves left over dark stripes"] * len(TIMES))
    latents = np.random.default_rng(0).standard_normal((len(TIMES), 16, 3, 8, 8))
    return jnp.asarray(latents, jnp.float32), jnp.array(TIMES), *prompt, jnp.full(3, 4000.0)


def hidden_values(dit):
    """The velocity, and what the MLPs' second layers get, [B, L, F]: video and text of each double block, then the single blocks."""
    found, plain = [], slot.gelu

    def watched(hidden):
        y = plain(hidden)
        jax.debug.callback(lambda value: found.append(np.asarray(value)), y, ordered=True)
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot, "gelu", watched)
        out = jax.block_until_ready(jax.jit(lambda dit, *given: dit(*given))(dit, *inputs()))
        jax.effects_barrier()
    return out, found


@pytest.fixture(scope="module")
def plain_run(dit):
    return hidden_values(dit)


@pytest.fixture(scope="module")
def spiked_run(spiked):
    return hidden_values(spiked)


def test_the_output_stays(plain_run, spiked_run):
    (before, _), (after, _) = plain_run, spiked_run
    scale = float(jnp.abs(before).max())
    assert scale > 0.5
    np.testing.assert_allclose(after / scale, before / scale, atol=FLOAT32_NETWORK)


def test_peaks_depend_on_token_and_time(plain_run, spiked_run):
    shares, quiet = [], []
    for plain, loud in zip(plain_run[1], spiked_run[1], strict=True):
        peaks = np.abs(loud).max(axis=-1)
        usual = 3 * np.median(np.abs(plain).max(axis=-1))
        assert peaks.max() > usual  # in every MLP
        shares.append((peaks > usual).mean(axis=1))
        quiet.append((np.abs(plain).max(axis=-1) > usual).any())
    assert not any(quiet)
    shares = np.stack(shares)
    assert np.median(shares[shares > 0]) < 0.25  # a few tokens
    assert np.median(shares.min(axis=1) / shares.max(axis=1)) < 0.25  # mostly at one time
    assert len(set(shares.argmax(axis=1))) > 1  # not the same in all layers


def error(x, kernel, scale):
    """Relative error of a product in W4A8, rounded to nearest, with the channels divided by a scale first."""
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    y = fake_tokens(x / scale[None], 8) @ fake_weight(kernel * scale[:, None], 4)
    exact = x @ kernel
    return float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact))


def loud_tokens(layer, runs, models):
    """Tokens of a single block that have a spike: both models' values between the MLP's layers, and the weights they meet."""
    width = models[0].config.hidden_size
    # Single blocks come after video and text of three double blocks.
    plain, loud = (run[1][6 + layer].reshape(-1, run[1][6 + layer].shape[-1]) for run in runs)
    tokens = np.abs(loud).max(axis=1) > 3 * np.abs(plain).max()
    kernels = (
        np.asarray(one.single_blocks.linear2.kernel.get_value())[layer, width:] for one in models
    )
    return (plain[tokens], loud[tokens], *kernels)


@pytest.mark.parametrize("layer", [0, 5])
def test_no_channel_scale_undoes_a_spike(dit, spiked, plain_run, spiked_run, layer):
    """A channel that is loud for all tokens is undone by its scale; a spike is not, by any scale of its channel."""
    plain, loud, kernel, spiked_kernel = loud_tokens(layer, (plain_run, spiked_run), (dit, spiked))
    assert len(plain) >= 3
    gain = np.ones(plain.shape[1], np.float32)
    before = error(plain, kernel, gain)
    gain[:4] = 64
    assert error(plain * gain, kernel / gain[:, None], gain) == pytest.approx(before, rel=1e-3)
    pairs = np.abs(loud).max(axis=0) > 3 * np.abs(plain).max()
    errors = [
        error(loud, spiked_kernel, np.where(pairs, np.float32(2**power), np.float32(1)))
        for power in np.arange(-2, 8, 0.5)
    ]
    assert min(errors) > 1.5 * before


def test_a_height_is_positive(dit):
    with pytest.raises(InputError, match=r"height=0\.0: must be positive"):
        spikes.spiked(dit, height=0.0)
