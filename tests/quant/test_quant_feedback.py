"""Rounding with error feedback: the definition in float64, step by step; what it gains; clips."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.absmax import limit
from qsjax.quant.feedback import CLIPS, DAMPING, round_with_feedback, searched_clip
from qsjax.quant.quantizer import quantize_weight, weight_scale


def by_definition(kernel, gram, scale, bits):
    """Round a row; move those that are left to the minimum of the output's error, found by solving for it."""
    left, top = kernel.astype(np.float64), limit(bits)
    gram = gram + DAMPING * np.diagonal(gram).mean() * np.eye(len(gram))
    scales = np.repeat(scale, len(kernel) // len(scale), axis=0)
    integers = np.zeros(kernel.shape, np.int8)
    rest = list(np.argsort(-np.diagonal(gram), kind="stable"))
    while rest:
        row = rest.pop(0)
        integers[row] = np.clip(np.round(left[row] / scales[row]), -top - 1, top)
        error = integers[row] * scales[row] - left[row]
        if rest:
            answer = np.linalg.solve(gram[np.ix_(rest, rest)], gram[rest, row])
            left[rest] -= np.outer(answer, error)
    return integers


def correlated(tokens, channels, seed=0):
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((channels, channels)) / np.sqrt(channels)
    return (
        random.standard_normal((tokens, channels)) @ mixing * np.exp(random.normal(size=channels))
    )


@pytest.fixture(scope="module")
def layer():
    """150 inputs, which are not whole blocks, and 24 outputs."""
    x = correlated(400, 150)
    kernel = np.random.default_rng(1).standard_normal((150, 24)).astype(np.float32)
    return x, kernel, x.T @ x


@pytest.mark.parametrize(("bits", "group"), [(3, 0), (4, 0), (4, 50), (6, 0)])
def test_rows_are_rounded_by_the_definition(layer, bits, group):
    _, kernel, gram = layer
    scale = weight_scale(jnp.asarray(kernel), bits, group=group)
    found = round_with_feedback(jnp.asarray(kernel), jnp.asarray(gram, jnp.float32), scale, bits)
    expected = by_definition(kernel, gram, np.asarray(scale, np.float64), bits)
    # In float32 a weight may lie on the other side of a half, and all that answer for it follow.
    assert (np.asarray(found) != expected).mean() < 0.01
    assert np.abs(np.asarray(found, int) - expected).max() <= 1


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_output_is_closer_than_by_rounding_to_nearest(layer, bits):
    x, kernel, gram = layer
    nearest, scale = quantize_weight(jnp.asarray(kernel), bits)
    found = round_with_feedback(jnp.asarray(kernel), jnp.asarray(gram, jnp.float32), scale, bits)

    def error(integers):
        return np.square(x @ (np.asarray(integers) * np.asarray(scale) - kernel)).sum()

    assert error(found) < 0.5 * error(nearest)


def test_independent_inputs_are_rounded_to_nearest():
    kernel = np.random.default_rng(2).standard_normal((8, 5)).astype(np.float32)
    nearest, scale = quantize_weight(jnp.asarray(kernel), 4)
    power = jnp.asarray(np.arange(1, 9), jnp.float32)
    for gram in (jnp.diag(power), jnp.zeros((8, 8))):
        np.testing.assert_array_equal(
            round_with_feedback(jnp.asarray(kernel), gram, scale, 4), nearest
        )


def test_a_clip_is_the_best_of_those_that_are_tried(layer):
    _, kernel, gram = layer
    kernel = kernel.copy()
    kernel[7, 3] = 30.0  # one weight, of an input that hardly comes, makes the others coarse
    gram = gram.copy()
    gram[7, :], gram[:, 7] = 0, 0
    found = np.asarray(searched_clip(jnp.asarray(kernel), jnp.asarray(gram, jnp.float32), 4))
    power, top = np.diagonal(gram), limit(4)

    def error(clip, column):
        scale = np.abs(kernel[:, column]).max() * clip / top
        rounded = np.clip(np.round(kernel[:, column] / scale), -top - 1, top) * scale
        return (power * np.square(kernel[:, column] - rounded)).sum()

    assert found[3] == np.float32(min(CLIPS))
    for column in range(kernel.shape[1]):
        best = min(error(clip, column) for clip in CLIPS)
        assert error(found[column], column) <= 1.0001 * best
