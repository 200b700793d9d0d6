"""The whole DiT with packed layers against one in floats that was quantized on paper."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quant_models import CONFIG, both, distance, dit_inputs, random_dit
from tolerances import FLOAT32_NETWORK

from qsjax.quant import Override, Precision, Recipe, with_quantized_layers
from qsjax.quant.surgery import iterate_linears

W4A8 = replace(Recipe.load("w4a8"), smoothing=False, rotation_size=16)
RECIPES = {
    "quarot": W4A8,
    "weights only": replace(W4A8, rotation="kronecker", blocks=Precision(weights=4)),
}


@pytest.fixture(scope="module")
def dit():
    return random_dit()


@pytest.fixture(scope="module")
def made(dit):
    """Recipe name -> the DiT with packed layers, and on paper."""
    return cache(lambda name: both(dit, RECIPES[name]))


@jax.jit
def forward(dit, given):
    return dit(**given)


def test_weights_only_is_the_same_to_rounding(made):
    packed, paper = made("weights only")
    found, expected = (forward(one, dit_inputs()) for one in (packed, paper))
    assert np.abs(expected).max() > 0.5
    assert distance(found, expected) < FLOAT32_NETWORK


def test_quantized_tokens_and_one_compilation_for_every_input(made):
    """Equal but for roundings that go the other way, each a step of 8 bits; 4-bit weights are 0.18 from the float ones."""
    packed, paper = made("quarot")
    given = dit_inputs()
    found, expected = (forward(one, given) for one in (packed, paper))
    assert distance(found, expected) < 0.02
    programs = forward._cache_size()
    other, _ = both(random_dit(seed=1), RECIPES["quarot"])
    assert (forward(other, dit_inputs(seed=1)) != found).any()
    assert forward._cache_size() == programs


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["w4a8", "w6a6", "w8a8", "w4a16", "groups", "ends", "bf16"])
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


@pytest.mark.parametrize("name", ["quarot", "weights only"])
def test_surgery_makes_the_very_leaves_that_quantizing_does(made, name):
    packed, _ = made(name)
    abstract = nnx.eval_shape(
        lambda: with_quantized_layers(random_dit(), RECIPES[name], clipped=False)
    )
    assert leaves(abstract) == leaves(packed)


def test_clips_where_activations_are_quantized():
    abstract = nnx.eval_shape(
        lambda: with_quantized_layers(random_dit(), RECIPES["quarot"], clipped=True)
    )
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
