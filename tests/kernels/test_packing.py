from inspect import unwrap

import jax
import numpy as np
import pytest

from pallas_kernels.quantized_matmul import PackedWeight, pack, unpack

FORMS = [
    (4, "bytes"), (4, "bytes_transposed"), (4, "int4"), (6, "bytes"), (6, "bytes_transposed"),
    (8, "bytes"), (8, "bytes_transposed"),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "layout"), FORMS)
def test_every_value_in_every_place_comes_back(bits, layout):
    limit = 2 ** (bits - 1)
    every = np.arange(-limit, limit, dtype=np.int8)
    values = np.stack([np.roll(every, shift) for shift in range(7)], axis=1)
    packed = pack(values, bits=bits, layout=layout)
    assert packed.shape == values.shape
    np.testing.assert_array_equal(unpack(packed), values)
    np.testing.assert_array_equal(jax.jit(unpack)(packed), values)


# A program for each: numbers of rows that leave 0 to 3 over when they are divided by the four of a byte.
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (2, 5), (3, 1), (4, 3), (33, 2)])
def test_any_shape(form, rows, columns):
    bits, layout = form
    limit = 2 ** (bits - 1)
    opened = jax.jit(unpack)
    for seed in range(3):
        values = np.random.default_rng(seed).integers(-limit, limit, (rows, columns), np.int8)
        np.testing.assert_array_equal(opened(pack(values, bits=bits, layout=layout)), values)


@pytest.mark.parametrize(("bits", "layout"), FORMS)
def test_some_of_the_columns(bits, layout):
    limit = 2 ** (bits - 1)
    values = np.random.default_rng(0).integers(-limit, limit, (9, 20), np.int8)
    part = jax.jit(lambda weight: weight.columns(3, 17))(pack(values, bits=bits, layout=layout))
    assert part.shape == (9, 14)
    np.testing.assert_array_equal(unpack(part), values[:, 3:17])


def test_bytes_are_what_the_format_says():
    low, high = -3, 5
    packed = pack(np.array([[low], [high]], np.int8), bits=4)
    assert np.asarray(packed.planes[0]).view(np.uint8).item() == (low & 15) | (high & 15) << 4
    six = pack(np.array([[-30], [7], [31], [-1]], np.int8), bits=6)
    assert np.asarray(six.planes[1]).view(np.uint8).item() == 2 | 3 << 2 | 3 << 4 | 3 << 6


@pytest.mark.parametrize(("bits", "layout"), FORMS)
def test_bytes_a_weight(bits, layout):
    packed = pack(np.zeros((128, 64), np.int8), bits=bits, layout=layout)
    assert packed.nbytes == 128 * 64 * bits / 8


def test_packed_weights_can_be_stacked_and_scanned():
    layers = [np.full((8, 3), value, np.int8) for value in (-8, 7)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *(pack(layer, bits=4) for layer in layers))
    _, found = jax.lax.scan(lambda carry, one: (carry, unpack(one)), 0, stacked)
    np.testing.assert_array_equal(found, np.stack(layers))
    assert isinstance(stacked, PackedWeight)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="-9 to 0 do not fit 4 bits"):
        pack(np.array([[-9], [0]], np.int8), bits=4)
    with pytest.raises(ValueError, match="int8 matrix, found int32"):
        pack(np.zeros((2, 2), np.int32), bits=4)
    with pytest.raises(ValueError, match="int8 matrix"):
        pack(np.zeros(2, np.int8), bits=4)
    # Unwrapped: outside of this suite nothing checks annotations.
    for bits, layout in ((5, "bytes"), (8, "int4"), (4, "rows")):
        with pytest.raises(ValueError, match="no layout"):
            unwrap(pack)(np.zeros((2, 2), np.int8), bits=bits, layout=layout)
