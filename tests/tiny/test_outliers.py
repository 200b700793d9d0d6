"""Outlier injection: the same function, louder channels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import FLOAT32_NETWORK

import qsjax
from qsjax.dit.norms import modulate
from qsjax.errors import InputError
from qsjax.tiny import outliers, words


@pytest.fixture(scope="module")
def dit(tiny_checkpoint):
    return qsjax.load_dit(tiny_checkpoint, dtype=jnp.float32)


def inputs(dit):
    prompt = words.encode(["a red circle moves left over dark stripes"] * 2)
    latents = np.random.default_rng(0).standard_normal((2, 16, 3, 8, 8)).astype(np.float32)
    return latents, jnp.array([900.0, 300.0]), *prompt, jnp.array([4000.0, 1000.0])


def test_the_output_stays(dit):
    run = jax.jit(type(dit).__call__)
    given = inputs(dit)
    before, after = run(dit, *given), run(outliers.inject(dit), *given)
    scale = float(jnp.abs(before).max())
    assert scale > 0.5
    np.testing.assert_allclose(after / scale, before / scale, atol=FLOAT32_NETWORK)


def loudest(dit, channels):
    """Of every norm of the single blocks: the `channels`-th loudest channel over the median one."""
    _, timestep, *_, pooled, guidance = inputs(dit)
    rows = dit.modulation(timestep[:1], pooled, guidance).single[0]
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 256, 128)), jnp.float32)
    ratios = []
    for row in rows:
        shift, scale, _ = jnp.split(row[:1], 3, axis=-1)
        peak = np.sort(np.abs(np.asarray(modulate(x, shift, scale))).max(axis=(0, 1)))
        ratios.append(peak[-channels] / np.median(peak))
    return np.array(ratios)


def test_there_are_outliers(dit):
    plain, loud = loudest(dit, 4), loudest(outliers.inject(dit), 4)
    assert np.median(loud) > 4
    assert np.median(loud / plain) > 3
    assert np.median(loudest(outliers.inject(dit, channels=8), 8)) > 4


def test_the_original_is_left_alone(dit):
    before = jax.tree.map(np.array, nnx.split(dit)[1])
    outliers.inject(dit, seed=5)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.split(dit)[1])


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"channels": 200}, {"factor": 3.0}])
def test_impossible_outliers(dit, wrong):
    with pytest.raises(InputError, match="must be"):
        outliers.inject(dit, **wrong)


@pytest.mark.parametrize(("arguments", "ratio"), [((), 4), (("--spikes",), 5)])
def test_a_folder_with_outliers(tiny_checkpoint, tmp_path, monkeypatch, capsys, arguments, ratio):
    monkeypatch.setattr("convert.bundled.converted_tiny_model", lambda: tiny_checkpoint)
    folder = tmp_path / "loud"
    assert outliers.main([str(folder), *arguments]) == 0
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["mlp_ratio"] == ratio
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
    assert outliers.main([str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
