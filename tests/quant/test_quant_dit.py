"""The whole DiT with packed layers against one in floats that was quantized on paper."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from flax import nnx
from quant_models import CONFIG, both, distance, dit_inputs, random_dit

from qsjax.quant import Override, Precision, Recipe, with_quantized_layers
from qsjax.quant.surgery import iterate_linears

W4A8 = replace(Recipe.load("w4a8"), smoothing=False, rotation_size=16)
# Rotated everywhere; double blocks with quantized tokens, single blocks with quantized weights only.
RECIPE = replace(
    W4A8,
    overrides=(
        Override(pattern=r"single_blocks\.linear.", precision=Precision(weights=6)),
        Override(pattern=r"double_blocks\.txt\.fc.", precision=Precision(weights=8, activations=6)),
    ),
)


@pytest.fixture(scope="module")
def made():
    """The DiT with packed layers, and on paper."""
    return both(random_dit(), RECIPE)


@jax.jit
def forward(dit, given):
    return dit(**given)


def test_equals_the_computation_on_paper_and_one_compilation_serves_every_input(made):
    """A rounding that goes the other way would move everything behind it, by steps of 6 or 8 bits: so much is allowed."""
    packed, paper = made
    found, expected = (forward(one, dit_inputs()) for one in (packed, paper))
    assert np.abs(expected).max() > 0.5
    assert distance(found, expected) < 0.02
    other, _ = both(random_dit(seed=1), RECIPE)
    with compilations() as compiled:
        assert (forward(other, dit_inputs(seed=1)) != found).any()
    assert compiled["forward"] == 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("w4a8", jnp.float32),
        *((name, jnp.bfloat16) for name in ("w4a8", "w6a6", "w4a16", "groups", "ends", "bf16")),
    ],
)
def test_every_recipe_traces_with_strict_dtypes(name, dtype):
    if name == "groups":
        recipe = replace(W4A8, blocks=Precision(weights=4, group=16))
    elif name == "ends":
        eight = Override(pattern=".*(embed|final).*", precision=Precision(weights=8))
        recipe = replace(W4A8, overrides=(eight,))
    else:
        recipe = Recipe.load(name)

    def run(given):
        dit = with_quantized_layers(random_dit(dtype=dtype), recipe)
        assert dit.dtype == dtype
        table = dit.modulation(jnp.asarray([9.0, 1.0]), given["pooled"], given["guidance"])
        row = jax.tree.map(lambda leaf: leaf[0], table)
        return row, dit(**given | {"guidance": None, "modulation": row})

    row, velocity = jax.eval_shape(run, dit_inputs())
    assert row.img.dtype == dtype
    assert (velocity.shape, velocity.dtype) == ((2, 4, 2, 6, 8), jnp.float32)


def leaves(module):
    flat = nnx.to_flat_state(nnx.state(module))
    return {path: (v.get_value().shape, v.get_value().dtype) for path, v in flat}


def test_surgery_makes_the_very_leaves_that_quantizing_does(made):
    abstract = nnx.eval_shape(lambda: with_quantized_layers(random_dit(), RECIPE, clipped=False))
    assert leaves(abstract) == leaves(made[0])


def test_clips_where_activations_are_quantized():
    abstract = nnx.eval_shape(lambda: with_quantized_layers(random_dit(), W4A8, clipped=True))
    clips = {
        ".".join(path[:-1]): shape for path, (shape, _) in leaves(abstract).items() if path[-1] == "clip"
    }  # fmt: skip
    assert clips["single_blocks.linear2.mlp"] == (CONFIG.num_single_blocks, 1)
    assert len(clips) == 8 + 3


def test_what_a_recipe_leaves_alone_stays():
    recipe = replace(W4A8, blocks=Precision(weights=16), refiner=Precision(weights=16))
    dit = nnx.eval_shape(lambda: with_quantized_layers(random_dit(), recipe))
    left = set(dict(iterate_linears(dit)))
    assert {"double_blocks.img.qkv", "single_blocks.linear2", "refiner.proj_in"} <= left
    assert not left & {"double_blocks.img.modulation", "single_blocks.modulation"}
