import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from text_checkpoints import CLIP_SMALL, LLAMA_SMALL, write_checkpoint
from text_oracles import our_clip, our_llama, relative_error, torch_clip, torch_llama

from qsjax.checkpoint import Manifest
from qsjax.errors import CheckpointError
from qsjax.text import Llama, TextEncoder, store_int8
from qsjax.text.int8 import Int8Linear, quantize_kernel, restore_int8

IDS = np.random.default_rng(3).integers(0, CLIP_SMALL.vocab_size, (2, 8)).astype(np.int32)
MASK = np.arange(8)[None] < np.array([[8], [5]])


@jax.jit
def _run(llama, clip):
    return llama(jnp.asarray(IDS), jnp.asarray(MASK)), clip(jnp.asarray(IDS))


def _models():
    return our_llama(torch_llama(LLAMA_SMALL), LLAMA_SMALL), our_clip(
        torch_clip(CLIP_SMALL), CLIP_SMALL
    )


def _bytes(modules, kind=None):
    leaves = [entry for m in modules for entry in nnx.to_flat_state(nnx.state(m))]
    return sum(leaf.get_value().nbytes for path, leaf in leaves if kind in (None, path[-1]))


def test_each_weight_is_within_half_a_step_and_dead_channels_stay_zero():
    kernel = np.random.default_rng(0).standard_normal((2, 30, 7)).astype(np.float32)
    kernel[1, :, 3] = 0
    integers, scale = map(np.asarray, quantize_kernel(jnp.asarray(kernel)))
    assert integers.shape == kernel.shape
    assert scale.shape == (2, 7)
    assert integers.dtype == np.int8
    restored = integers * scale[:, None]
    assert (np.abs(restored - kernel) <= 0.5001 * scale[:, None]).all()
    assert not restored[1, :, 3].any()
    assert np.abs(integers).max() == 127


def test_storage_shrinks_and_computes_with_the_rounded_weights():
    exact = _models()
    stored = tuple(store_int8(nnx.clone(module)) for module in exact)
    rounded = tuple(nnx.clone(module) for module in exact)
    scales = 0
    for module, low in zip(rounded, stored, strict=True):
        for name, linear in vars(module.layers).items():
            if isinstance(linear, nnx.Linear):
                part = getattr(low.layers, name)
                assert isinstance(part, Int8Linear)
                integers, scale = np.asarray(part.kernel[...]), np.asarray(part.scale[...])
                linear.kernel.set_value(jnp.asarray(integers * scale[:, None]))
                scales += scale.nbytes
    linears = _bytes(exact, "kernel")
    assert _bytes(exact) - _bytes(stored) == linears * 3 // 4 - scales
    (text, pooled), (close_text, close_pooled) = _run(*exact), _run(*stored)
    same_text, same_pooled = _run(*rounded)
    assert relative_error(np.asarray(close_text)[MASK], np.asarray(same_text)[MASK]) <= 1e-5
    assert relative_error(close_pooled, same_pooled) <= 1e-5
    # Weights are off by about 0.6 % of their size; two layers of order-one gain let that grow.
    assert 0 < relative_error(np.asarray(close_text)[MASK], np.asarray(text)[MASK]) < 0.06
    assert 0 < relative_error(close_pooled, pooled) < 0.06


def test_bfloat16_activations_stay_bfloat16():
    random = np.random.default_rng(1)
    linear = nnx.eval_shape(
        lambda: nnx.Linear(6, 4, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    )
    linear.kernel.set_value(jnp.asarray(random.standard_normal((6, 4)), jnp.bfloat16))
    linear.bias.set_value(jnp.asarray(random.standard_normal(4), jnp.bfloat16))
    x = jnp.asarray(random.standard_normal((2, 3, 6)), jnp.bfloat16)
    y = Int8Linear(linear)(x)
    assert y.dtype == jnp.bfloat16
    assert relative_error(y.astype(jnp.float32), linear(x).astype(jnp.float32)) < 0.02


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_no_more_than_one_layer_is_widened_at_a_time(storage):
    """The compiled program must not turn the whole stack into float32, as XLA would for CPUs."""
    config = dataclasses.replace(LLAMA_SMALL, num_hidden_layers=34, intermediate_size=512)

    def build():
        llama = Llama(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        return store_int8(llama) if storage == "int8" else llama

    llama = nnx.eval_shape(build)
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 4), bool)
    memory = jax.jit(lambda m, i, k: m(i, k)).lower(llama, ids, mask).compile().memory_analysis()
    leaves = nnx.to_flat_state(nnx.state(llama))
    weights = sum(leaf.get_value().size for path, leaf in leaves if path[-1] == "kernel")
    assert memory.temp_size_in_bytes < 4 * weights / 8


def test_loading_quantizes_as_storing_does(tmp_path):
    encoder = TextEncoder.load(write_checkpoint(tmp_path / "checkpoint"), storage="int8")
    llama, clip = _models()
    del llama.embed  # its rows are read when a prompt needs them
    for loaded, module in zip((encoder.llama, encoder.clip), (llama, clip), strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-6, atol=0
            ),
            nnx.state(loaded),
            nnx.state(store_int8(module)),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaves: leaves | {"layers.1.k_proj.bias": np.ones(3, np.float32)}, "surplus layers.1.k_proj.bias"),
        (
            lambda leaves: {k: v for k, v in leaves.items() if k != "layers.1.q_proj.kernel"},
            "missing layers.q_proj.kernel from index 1 on",
        ),
        (
            lambda leaves: leaves | {"layers.0.q_proj.kernel": leaves["layers.0.q_proj.kernel"].T},
            "layers.0.q_proj.kernel has shape (48, 42) instead of (42, 48)",
        ),
    ],
    ids=["surplus", "missing", "transposed"],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change, message):
    manifest = Manifest.read(write_checkpoint(tmp_path / "checkpoint", change=change))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        restore_int8(
            manifest, "llama", nnx.eval_shape(lambda: Llama(LLAMA_SMALL, rngs=nnx.Rngs(0)))
        )
