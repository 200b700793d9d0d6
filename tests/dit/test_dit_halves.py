"""The two halves of the DiT: together the whole, and each enough for its own work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dit_pairs import SMALL, inputs
from flax import nnx

from qsjax.dit import DiT
from qsjax.dit.halves import PARTS, belongs_to, keep
from qsjax.errors import InputError
from qsjax.params import map_parameters, parameters


def build(part):
    """Equal weights where parts share a parameter, none of them zero."""
    dit = keep(nnx.eval_shape(lambda: DiT(SMALL, rngs=nnx.Rngs(0))), part)
    return map_parameters(_random, dit)


def _random(name, like):
    seed = sum(map(ord, name))
    return jnp.asarray(0.2 * np.random.default_rng(seed).standard_normal(like.shape), like.dtype)


def names(dit):
    return set(parameters(dit))


def test_every_parameter_is_in_one_half():
    whole, modulation, steps = (names(build(part)) for part in PARTS)
    assert whole == modulation | steps
    assert not modulation & steps
    assert {"time_embed.fc1.kernel", "final.modulation.bias"} <= modulation
    assert {"refiner.time_embed.fc1.kernel", "refiner.blocks.modulation.kernel"} <= steps
    for name in whole:
        assert belongs_to("modulation", name) == (name in modulation)
        assert belongs_to("whole", name)
    assert belongs_to("modulation", "double_blocks.3.img.modulation.packed")


def test_halves_do_the_work_of_the_whole():
    given = {k: jnp.asarray(v) for k, v in inputs(SMALL).items()}
    given["timestep"] = jnp.full(2, 640.0)
    table = jax.jit(DiT.modulation)(
        build("modulation"), given["timestep"][:1], given["pooled"], given["guidance"]
    )
    row = jax.tree.map(lambda leaf: leaf[0], table)

    @jax.jit
    def step(dit, row):
        return dit(**given | {"guidance": None}, modulation=row)

    np.testing.assert_array_equal(step(build("steps"), row), step(build("whole"), row))


def test_unknown_part():
    with pytest.raises(InputError, match="no part 'block'"):
        keep(nnx.eval_shape(lambda: DiT(SMALL, rngs=nnx.Rngs(0))), "block")
