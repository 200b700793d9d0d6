"""Packed layers against the same numbers on paper: fake_tokens(rotate(x / c)) fake_weight + b."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quant_models import OnPaper, distance
from tolerances import FLOAT32_NETWORK, bfloat16_tokens

from qsjax.dit.norms import modulate
from qsjax.dit.slot import (
    activated_input,
    gated_sum,
    gelu,
    joined_input,
    modulated_input,
    split_output,
)
from qsjax.quant import JoinedLinear, Precision, QuantizedLinear, QuantizedTokens, Transform
from qsjax.quant.branched import BranchedLinear
from qsjax.quant.quantizer import fake_weight
from qsjax.quant.rotation import rotate_rows, start
from qsjax.quant.storage import linear_leaves

ROWS, COLUMNS = 128, 24
PRECISIONS = {
    "W4A8": Precision(weights=4, activations=8),
    "W3A8": Precision(weights=3, activations=8),
    "W4A4": Precision(weights=4, activations=4),
    "W6A6": Precision(weights=6, activations=6),
    "W8A8": Precision(weights=8, activations=8),
    "W4A16": Precision(weights=4),
    "W6A16": Precision(weights=6),
    "W4A16 in groups": Precision(weights=4, group=64),
    "W8A16 in groups": Precision(weights=8, group=32),
}


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def both(precision, *, rotation="block", smoothing=True, dtype=jnp.float32, rows=ROWS, bias=True, seed=0):  # fmt: skip
    """The packed layer and the one on paper, of one float kernel."""
    transform = Transform(
        jnp.exp(0.5 * normal(rows, seed=seed + 1)) if smoothing else None, start(rotation, rows, 32)
    )
    kernel = normal(rows, COLUMNS, seed=seed, dtype=dtype).astype(jnp.float32)
    if smoothing:
        kernel = kernel * transform.smoothing[:, None]
    kernel = rotate_rows(kernel, transform.rotation)
    offset = normal(COLUMNS, seed=seed + 2) if bias else None
    leaves = {name: jnp.asarray(leaf) for name, leaf in linear_leaves(kernel, precision).items()}
    leaves |= {"bias": offset, "smoothing": transform.smoothing}
    if transform.rotation is not None:
        leaves |= {"rotation": jnp.asarray(transform.rotation.runs)}
        leaves |= {"mix": transform.rotation.mix if transform.rotation.mix is None else jnp.asarray(transform.rotation.mix)}  # fmt: skip
    packed = QuantizedLinear(leaves, rows=rows, precision=precision, dtype=dtype)
    weight = fake_weight(kernel, precision.weights, group=precision.group)
    return packed, OnPaper(weight, offset, precision, transform)


@pytest.mark.parametrize(
    ("name", "rotation"),
    [
        *((name, "block") for name in PRECISIONS),
        *((name, other) for name in ("W4A8", "W4A16") for other in ("none", "kronecker")),
    ],
)
def test_equals_the_computation_on_paper(name, rotation):
    packed, paper = both(PRECISIONS[name], rotation=rotation, smoothing=rotation != "none")
    x = normal(2, 5, ROWS, seed=7)
    found, expected = packed(x), paper(x)
    assert found.dtype == jnp.float32
    assert distance(found, expected) < FLOAT32_NETWORK


@pytest.mark.parametrize("name", ["W4A8", "W6A6", "W4A16", "W4A16 in groups"])
def test_bfloat16(name):
    packed, paper = both(PRECISIONS[name], dtype=jnp.bfloat16)
    x = normal(2, 5, ROWS, seed=7, dtype=jnp.bfloat16)
    found = packed(x)
    assert found.dtype == jnp.bfloat16
    expected = paper(x.astype(jnp.float32))
    assert distance(found, expected) < bfloat16_tokens(PRECISIONS[name].activations)


def test_rows_that_do_not_fill_a_byte():
    for bits in (4, 6):
        packed, paper = both(Precision(weights=bits), rotation="none", rows=45)
        x = normal(3, 45, seed=7)
        assert distance(packed(x), paper(x)) < FLOAT32_NETWORK


def test_clip_reaches_the_tokens():
    precision = PRECISIONS["W4A8"]
    packed, paper = both(precision)
    clipped = nnx.clone(packed)
    clipped.clip = nnx.data(nnx.Param(jnp.asarray([0.5])))
    x = normal(2, 5, ROWS, seed=7)
    tokens, wider = clipped.prepare(x), packed.prepare(x)
    assert isinstance(tokens, QuantizedTokens)
    np.testing.assert_allclose(tokens.scale, wider.scale / 2, rtol=1e-6)
    assert np.asarray(tokens.values).min() == -128
    # Same tokens, same product: quantized input may come from outside.
    np.testing.assert_array_equal(clipped(wider), packed(x))
    assert distance(clipped(x), paper(x)) > 1e-3


@pytest.mark.parametrize("rotation", ["block", "kronecker"])
@pytest.mark.parametrize("name", ["W4A8", "W4A16"])
def test_every_question_of_the_slot(name, rotation):
    packed, paper = both(PRECISIONS[name], rotation=rotation, smoothing=False)
    x, shift, scale = normal(2, 5, ROWS, seed=3), normal(2, ROWS, seed=4), normal(2, ROWS, seed=5)
    residual, gate = normal(2, 5, COLUMNS, seed=6), normal(2, COLUMNS, seed=7)

    @jax.jit
    def ask(layer):
        return (
            layer(modulated_input(layer, x, shift, scale)),
            layer(activated_input(layer, x)),
            gated_sum(residual, gate, layer, x),
            gated_sum(residual, gate, layer, activated_input(layer, x)),
        )

    fused = name == "W4A8" and rotation == "block"
    assert (packed.modulated_input is not None) == fused
    assert isinstance(modulated_input(packed, x, shift, scale), QuantizedTokens) == fused
    for found, expected in zip(ask(packed), ask(paper), strict=True):
        assert distance(found, expected) < FLOAT32_NETWORK
    np.testing.assert_allclose(
        ask(paper)[0], paper(modulate(x, shift, scale)), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["W4A8", "W4A16", "W4A16 in groups"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_joined(name, dtype):
    """A sum of two layers with inputs of their own; in between it is float32, whatever the residual stream is."""
    precision = PRECISIONS[name]
    attention, on_paper = both(precision, rotation="none", smoothing=False, dtype=dtype)
    mlp, mlp_on_paper = both(precision, dtype=dtype, bias=False, seed=9)
    attended, hidden = (normal(2, 5, ROWS, seed=seed, dtype=dtype) for seed in (3, 4))
    x, gate = normal(2, 5, COLUMNS, seed=6, dtype=dtype), normal(2, COLUMNS, seed=7, dtype=dtype)
    layer = JoinedLinear(attention, mlp)

    @jax.jit
    def run(layer):
        joined = joined_input(layer, attended, hidden)
        return gated_sum(x, gate, layer, joined), x + gate[:, None] * layer(joined)

    found, in_two_steps = run(layer)
    assert found.dtype == dtype
    wide, hidden = (array.astype(jnp.float32) for array in (attended, hidden))
    expected = x + gate[:, None] * (on_paper(wide) + mlp_on_paper(gelu(hidden))).astype(dtype)
    exact = dtype == jnp.float32
    tolerance = FLOAT32_NETWORK if exact else bfloat16_tokens(precision.activations)
    assert distance(found, expected) < tolerance
    assert distance(in_two_steps, expected) < tolerance


@pytest.mark.parametrize("name", PRECISIONS)
def test_an_output_in_two(name):
    """One array for each part, equal to the columns of the whole; a layer that cannot do that gives the whole and a part."""
    packed, paper = both(PRECISIONS[name])
    x, at = normal(2, 5, ROWS, seed=3), 10
    for layer in (packed, paper):
        whole = layer(x)
        first, second = split_output(layer, x, at)
        assert first.shape[-1] == (at if getattr(layer, "split_output", None) else COLUMNS)
        assert distance(first[..., :at], whole[..., :at]) < FLOAT32_NETWORK
        assert distance(second, whole[..., at:]) < FLOAT32_NETWORK
    assert (packed.split_output is None) == ("groups" in name)


def test_weights_take_the_bytes_they_should():
    for name, share in (("W4A8", 0.5), ("W3A8", 0.5), ("W6A6", 0.75), ("W8A8", 1.0)):
        packed, _ = both(PRECISIONS[name])
        assert packed.weight.nbytes == share * ROWS * COLUMNS
        assert packed.weight.shape == (ROWS, COLUMNS)


def test_branch_needs_the_input_before_it_is_quantized():
    packed, _ = both(PRECISIONS["W4A8"])
    names = ("packed", "scale", "bias", "smoothing", "rotation")
    leaves = {name: getattr(packed, name).get_value() for name in names}
    leaves |= {"branch_in": normal(ROWS, 1, seed=3), "branch_out": normal(1, COLUMNS, seed=4)}
    branched = BranchedLinear(leaves, rows=ROWS, precision=packed.precision, dtype=jnp.float32)
    x = normal(2, 5, ROWS, seed=7)
    assert branched.modulated_input is branched.activated_input is None
    correction = x @ leaves["branch_in"] @ leaves["branch_out"]
    np.testing.assert_allclose(branched(x), packed(x) + correction, atol=1e-4, rtol=1e-4)
    with pytest.raises(TypeError, match="before it is quantized"):
        branched(packed.prepare(x))
