from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from tolerances import BFLOAT16_CAST, FLOAT32_EPILOGUE, float32_sum

from pallas_kernels import UnsupportedError
from pallas_kernels.quantized_matmul import QUANTIZED_MATMUL, pack, quantized_matmul, unpack
from pallas_kernels.quantized_matmul.reference import accumulated

# What is called with several values of a shape.
multiply = jax.jit(quantized_matmul, static_argnames=("out_dtype", "implementation"))
opened, sums = jax.jit(unpack), jax.jit(accumulated)


def operands(m=12, k=40, n=24, *, bits=4, layout="bytes", seed=0):
    random = np.random.default_rng(seed)
    limit = 2 ** (bits - 1)
    return {
        "x": jnp.asarray(random.integers(-128, 128, (m, k), np.int8)),
        "x_scale": jnp.asarray(random.uniform(0.5, 2, m), jnp.float32),
        "weight": pack(random.integers(-limit, limit, (k, n), np.int8), bits=bits, layout=layout),
        "w_scale": jnp.asarray(random.uniform(0.001, 0.002, n), jnp.float32),
    }


def extras(m=12, n=24, groups=3):
    random = np.random.default_rng(1)
    shapes = {"bias": (n,), "residual": (m, n), "gate": (groups, n)}
    return {
        name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }


def by_hand(x, x_scale, weight, w_scale, bias, residual, gate, gelu):
    """numpy, float64, from the definition."""
    w = np.asarray(unpack(weight), np.float64)
    y = np.asarray(x, np.float64) @ w * np.asarray(x_scale)[:, None] * np.asarray(w_scale) + bias
    if gelu:
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return residual + np.repeat(gate, len(y) // len(gate), axis=0) * y


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("activation", ["none", "gelu_tanh"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_everything_fused(implementation, activation, bits):
    values, others = operands(bits=bits), extras()
    y = quantized_matmul(
        **values,
        **others,
        activation=activation,
        out_dtype=jnp.float32,
        implementation=implementation,
    )
    expected = by_hand(
        **values,
        **{name: np.asarray(array) for name, array in others.items()},
        gelu=activation == "gelu_tanh",
    )
    np.testing.assert_allclose(y, expected, atol=10 * FLOAT32_EPILOGUE * np.abs(expected).max())


# Rows of K that fill panels of two and of four, and numbers of them that do not; one row, one column, one of all.
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (1, 34, 7), (20, 49, 1), (3, 48, 20), (7, 3, 5)]
)
@pytest.mark.parametrize(
    ("bits", "layout"),
    [(4, "bytes"), (4, "int4"), (4, "bytes_transposed"), (6, "bytes"), (8, "bytes")],
)
@settings(max_examples=4)
@given(seed=st.integers(0, 99))
def test_integer_sums_are_exact(m, k, n, bits, layout, seed):
    values = operands(m, k, n, bits=bits, layout=layout, seed=seed)
    ones = {"x_scale": jnp.ones(m), "w_scale": jnp.ones(n)}
    y = multiply(**{**values, **ones}, out_dtype=jnp.float32, implementation="xla")
    weight = opened(values["weight"])
    exact = np.asarray(values["x"], np.int64) @ np.asarray(weight, np.int64)
    np.testing.assert_array_equal(y, exact)
    np.testing.assert_array_equal(sums(values["x"], weight), exact)


def test_the_longest_sum_does_not_wrap():
    k = 2**17 - 1
    x, w = jnp.full((1, k), -128, jnp.int8), pack(np.full((k, 1), -128, np.int8), bits=8)
    y = quantized_matmul(x, jnp.ones(1), w, jnp.ones(1), out_dtype=jnp.float32)
    assert y.item() == np.float32(128 * 128 * k)
    with pytest.raises(ValueError, match="too long for int32"):
        quantized_matmul(
            jnp.zeros((1, k + 1), jnp.int8), jnp.ones(1), pack(np.zeros((k + 1, 1), np.int8), bits=8),
            jnp.ones(1),
        )  # fmt: skip


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_weights_alone_may_be_quantized(bits):
    values = operands(3, bits=bits)
    x = jax.random.normal(jax.random.key(0), (3, 40))
    y = quantized_matmul(
        x, None, values["weight"], values["w_scale"], out_dtype=jnp.float32, implementation="xla"
    )
    expected = np.asarray(x, np.float64) @ np.asarray(unpack(values["weight"]), np.float64)
    expected = expected * np.asarray(values["w_scale"], np.float64)
    size = np.abs(expected).max()
    np.testing.assert_allclose(y, expected, atol=float32_sum(40) * 4 * size)


def test_the_result_is_cast_once():
    values = operands()
    wide = quantized_matmul(**values, out_dtype=jnp.float32)
    narrow = quantized_matmul(**values)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, rtol=BFLOAT16_CAST)


def test_zero_scales_and_zero_rows_are_harmless():
    values = operands()
    y = quantized_matmul(
        **{**values, "x": values["x"].at[0].set(0), "x_scale": values["x_scale"].at[0].set(0)}
    )
    assert np.asarray(y[0], np.float32).tolist() == [0.0] * 24
    assert np.isfinite(np.asarray(y, np.float32)).all()


def test_scales_bias_gate_and_residual_have_gradients():
    values, others = operands(), extras()
    floats = {**others, "x_scale": values["x_scale"], "w_scale": values["w_scale"]}

    def loss(floats):
        y = quantized_matmul(
            x=values["x"], weight=values["weight"], out_dtype=jnp.float32, activation="gelu_tanh",
            implementation="xla", **floats,
        )  # fmt: skip
        return jnp.square(y).sum()

    slopes = jax.grad(loss)(floats)
    step = 1e-3
    for name, slope in slopes.items():
        direction = jax.random.normal(jax.random.key(1), slope.shape) * jnp.abs(floats[name]).mean()
        up, down = (
            loss({**floats, name: floats[name] + sign * step * direction}) for sign in (1, -1)
        )
        slope_along = float((slope * direction).sum())
        assert slope_along == pytest.approx(float(up - down) / (2 * step), rel=2e-2), name


def test_operands_that_do_not_go_together():
    values, others = operands(), extras()
    bad = {
        "x": (values["x"][:, :-1], "cannot be multiplied"),
        "x_scale": (values["x_scale"][1:], "x_scale has shape"),
        "w_scale": (values["w_scale"][1:], "w_scale has shape"),
    }
    for name, (array, message) in bad.items():
        with pytest.raises(ValueError, match=message):
            quantized_matmul(**{**values, name: array})
    with pytest.raises(ValueError, match="need a scale"):
        quantized_matmul(**{**values, "x_scale": None})
    with pytest.raises(ValueError, match="need a scale"):
        quantized_matmul(**{**values, "x": values["x"].astype(jnp.float32)})
    with pytest.raises(ValueError, match="does not divide 12 rows"):
        quantized_matmul(**values, gate=jnp.ones((5, 24)))
    # Unwrapped: outside of this suite nothing checks annotations.
    with pytest.raises(ValueError, match="none of none, gelu_tanh"):
        unwrap(quantized_matmul)(**values, activation="relu")
    with pytest.raises((ValueError, TypeCheckError), match="bias"):
        quantized_matmul(**values, bias=others["bias"][1:])


def test_the_choice_is_explained():
    with pytest.raises(
        UnsupportedError, match=r"xla_int4 .*only a TPU.*; those that can: auto, xla, reference"
    ):
        quantized_matmul(**operands(), implementation="xla_int4")
    facts = {"bits": 4, "layout": "int4", "rows": 3072, "weight_only": False}
    assert QUANTIZED_MATMUL.choose(backend="tpu", **facts) == "xla_int4"
    assert QUANTIZED_MATMUL.choose(backend="cpu", **facts) == "xla"
    packed = {**facts, "layout": "bytes"}
    assert QUANTIZED_MATMUL.choose(backend="tpu", **packed) == "tpu"
    assert QUANTIZED_MATMUL.choose(backend="tpu", **{**packed, "rows": 40}) == "xla"
