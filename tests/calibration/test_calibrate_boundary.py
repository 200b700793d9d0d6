"""Activations between blocks: the same bits from memory and from files, and what of an earlier run cannot be opened."""

import jax.numpy as jnp
import numpy as np
import pytest

from qsjax.calibration.blocks import Tokens
from qsjax.calibration.boundary import Boundary
from qsjax.errors import CheckpointError, InputError

SHAPES = [(2, 3, 4), (2, 5, 4)]


def filled(folder, dtype=jnp.bfloat16):
    values = np.random.default_rng(0).standard_normal((2, 8, 4))
    boundary = Boundary.empty(SHAPES, dtype, folder, "a")
    for sample, value in enumerate(values):
        boundary.write(sample, Tokens(*jnp.split(jnp.asarray(value[None], dtype), [3], axis=1)))
    boundary.commit(folder, "a")
    return boundary


def test_files_hold_the_bits_of_memory(tmp_path):
    held, written = filled(None), filled(tmp_path)
    opened = Boundary.open(jnp.bfloat16, tmp_path, "a")
    for boundary in (written, opened):
        assert boundary.shapes == held.shapes == SHAPES
        for sample in range(2):
            for expected, found in zip(held[sample], boundary[sample], strict=True):
                assert found.dtype == jnp.bfloat16
                np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_opened(tmp_path):
    filled(tmp_path)
    with pytest.raises(CheckpointError, match="are not float32 tokens"):
        Boundary.open(jnp.float32, tmp_path, "a")
    with pytest.raises(InputError, match="cannot be opened"):
        Boundary.open(jnp.bfloat16, tmp_path, "b")
    with pytest.raises(ValueError, match="of an earlier run are in a folder; name it"):
        Boundary.open(jnp.bfloat16, None, "a")
