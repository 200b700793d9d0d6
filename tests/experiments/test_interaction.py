"""Attention's error by quantization, sparsity and both."""

import json
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import FLOAT32_NETWORK

import qsjax
from qsjax.errors import InputError
from qsjax.experiments.interaction import attention_errors, table, to_float_channels
from qsjax.experiments.interaction.__main__ import main
from qsjax.experiments.interaction.measure import squared_error
from qsjax.pipeline import Pipeline
from qsjax.quant import Recipe
from qsjax.settings.sparsity import Sparsity


def test_padding_has_no_error():
    random = np.random.default_rng(0)
    out, exact = (random.standard_normal((2, 2, 5, 2, 4)).astype(np.float32) for _ in range(2))
    valid = np.array([[True] * 5, [True] * 3 + [False] * 2])
    found = squared_error(*map(jnp.asarray, (out, exact, valid)))
    np.testing.assert_allclose(found[1, 0], np.square(out - exact)[1, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], np.square(out - exact)[0, 1, :3].mean(), rtol=1e-5)


def test_the_table_has_shares_of_the_output():
    errors = np.ones((2, 3, 2, 4))  # steps, ways, layers, clips
    errors[:, :, 1] = 100  # a loud layer
    sizes = np.ones((2, 2, 4))
    sizes[:, 1] = 1000
    errors[:, 2] *= 3
    row = table({"rtn": errors}, sizes).splitlines()[-1]
    # (1 + 0.1) / 2 each.
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "rtn", "0.5500 +- 0.0000", "0.5500 +- 0.0000", "1.1000 +- 0.0000", "1.6500 +- 0.0000",
        "1.50 +- 0.00", "1.50 +- 0.00",
    ]  # fmt: skip


def test_channels_are_the_float_model_s_or_it_is_said(tiny_checkpoint):
    dit, other = (qsjax.load_dit(tiny_checkpoint, dtype=jnp.float32) for _ in range(2))
    recipe = replace(Recipe.load("w4a8"), smoothing=False, rotation="none")
    same = to_float_channels(dit, other, recipe)
    np.testing.assert_array_equal(same, np.broadcast_to(np.eye(64), (9, 2, 64, 64)))
    # Scales divide the bias of V; that of one stream tells them, and the other one agrees.
    scale = np.exp2(np.arange(-64, 64) / 32).astype(np.float32)
    divided = np.concatenate([np.ones(256, np.float32), scale])[None]
    for layer in (other.double_blocks.img.qkv, other.double_blocks.txt.qkv):
        layer.bias = nnx.Param(layer.bias.get_value() / divided)
    found = to_float_channels(dit, other, replace(recipe, smoothing=True))
    np.testing.assert_allclose(found[1, 1], np.diag(scale[64:]), rtol=1e-5)
    other.double_blocks.txt.qkv.bias = nnx.Param(2 * other.double_blocks.txt.qkv.bias.get_value())
    with pytest.raises(InputError, match="its transforms are learned"):
        to_float_channels(dit, other, replace(recipe, smoothing=True))


SIZE = {"frames": 5, "height": 32, "width": 32, "steps": 1}


def test_the_same_weights_have_the_error_of_sparsity_alone(tiny_checkpoint):
    pipeline = Pipeline.from_checkpoint(tiny_checkpoint, dtype="float32", progress=False)
    same = jnp.broadcast_to(jnp.eye(64), (9, 2, 64, 64))
    captions = [
        "a red circle moves left over dark stripes",
        "a blue square grows over light stripes",
    ]
    errors, sizes = attention_errors(
        pipeline, {"same": (pipeline.dit, same)}, captions, sparsity=Sparsity(density=0.3), **SIZE
    )
    assert errors["same"].shape == (1, 3, 9, 2)
    quantization, sparsity, both = errors["same"][0] / sizes[0]
    assert (quantization < FLOAT32_NETWORK**2).all()
    assert (sparsity > 1e-4).all()
    np.testing.assert_allclose(both, sparsity, rtol=1e-3)


@pytest.mark.whole
def test_a_run_of_the_bundled_model(monkeypatch, capsys):
    size = [part for name, value in SIZE.items() for part in (f"--{name}", str(value))]
    arguments = [*size, "--captions", "2", "--samples", "2", "--methods", "rtn", "gptq", "--json"]
    monkeypatch.setattr(sys, "argv", ["interaction", *arguments])
    main()
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["rtn", "gptq"]
    for quantization, sparsity, both in report.values():
        # In the wrong channels it would be above 1.
        assert 0.001 < np.mean(quantization) < 0.8
        assert np.mean(both) > np.mean(sparsity)
