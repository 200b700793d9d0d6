"""How packed weights lie on a device, and what they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quant_models import random_dit

from qsjax.dit import DiT, DiTConfig
from qsjax.quant import (
    Precision,
    QuantizedLinear,
    Recipe,
    arrange,
    device_bytes,
    with_quantized_layers,
)
from qsjax.quant.layout import preferred_layout
from qsjax.quant.storage import linear_leaves

W4A8, W6A6, W8A8 = (Precision(weights=b, activations=a) for b, a in ((4, 8), (6, 6), (8, 8)))


@pytest.mark.parametrize(
    ("backend", "precision", "rows", "layout"),
    [
        ("cpu", W4A8, 3072, "bytes"),
        ("tpu", W4A8, 3072, "int4"),
        ("tpu", Precision(weights=3, activations=8), 12288, "int4"),
        ("tpu", Precision(weights=4), 3072, "int4"),
        ("tpu", W6A6, 3072, "bytes"),
        ("tpu", W8A8, 3072, "bytes"),
        ("gpu", W4A8, 3072, "bytes_transposed"),
        ("gpu", W6A6, 3072, "bytes_transposed"),
        ("gpu", W8A8, 3072, "bytes_transposed"),
        ("gpu", Precision(weights=4), 3072, "bytes_transposed"),
        ("gpu", W4A8, 48, "bytes"),
    ],
)
def test_preferred_layout(backend, precision, rows, layout):
    assert preferred_layout(precision, rows, backend) == layout


def layer(bits, rows=128, columns=8, stack=None):
    random = np.random.default_rng(bits)
    shape = (rows, columns)
    each = [
        linear_leaves(jnp.asarray(random.standard_normal(shape), jnp.float32), Precision(weights=bits, activations=8))
        for _ in range(stack or 1)
    ]  # fmt: skip
    leaves = {name: jnp.stack([one[name] for one in each]) for name in each[0]}
    if stack is None:
        leaves = {name: leaf[0] for name, leaf in leaves.items()}
    precision = Precision(weights=bits, activations=8)
    return QuantizedLinear(leaves, rows=rows, precision=precision, dtype=jnp.float32)


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_arranged_bytes_hold_the_same_integers(backend, bits):
    for stack in (None, 3):
        linear = layer(bits, stack=stack)
        arranged = arrange(nnx.clone(linear), backend)
        assert device_bytes(arranged) == device_bytes(linear)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 128)), jnp.float32)
        if stack is None:
            np.testing.assert_array_equal(arranged(x), linear(x))
        else:
            run = jax.jit(lambda linear, x: jax.lax.map(lambda one: one(x), linear))
            np.testing.assert_array_equal(run(arranged, x), run(linear, x))


def test_device_bytes_is_the_sum_over_leaves():
    dit = random_dit()
    leaves = jax.tree.leaves(nnx.state(dit))
    assert device_bytes(dit) == sum(leaf.nbytes for leaf in leaves)
    assert device_bytes(nnx.eval_shape(random_dit)) == device_bytes(dit)
    assert device_bytes({"a": jnp.zeros((3, 5), jnp.int4), "b": jnp.zeros(3, jnp.bfloat16)}) == 14


@pytest.mark.parametrize(("bits", "share"), [(4, 0.5), (6, 0.75), (8, 1.0)])
def test_weights_take_the_bytes_they_should(bits, share):
    linear = layer(bits, rows=128, columns=8)
    planes = [linear.packed[...]] + ([] if bits != 6 else [linear.low_bits[...]])
    assert device_bytes(planes) == share * 128 * 8 == linear.weight.nbytes
    assert device_bytes(linear) == share * 128 * 8 + 4 * 8


def test_13b_takes_the_bytes_that_its_recipe_says():
    """Weights at their bits, a float32 scale and bias for every output channel, everything else bfloat16."""
    config = DiTConfig.preset("hunyuan-video-13b")
    recipe = Recipe.load("w4a8")

    def build():
        dit = DiT(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        return with_quantized_layers(dit, recipe, clipped=False)

    total = device_bytes(nnx.eval_shape(build))
    assert 6.6e9 < total < 6.75e9
