"""Recipes: presets, precedence, and refusals that name what was meant."""

from dataclasses import replace

import jax.numpy as jnp
import pytest
from flax import nnx
from quant_models import random_dit

from qsjax.config import configs_directory, from_mapping, to_mapping
from qsjax.errors import InputError
from qsjax.quant import Override, Precision, Recipe, with_quantized_layers
from qsjax.quant.surgery import iterate_linears

PRESETS = sorted(path.stem for path in (configs_directory() / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_survive_a_manifest(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert from_mapping(Recipe, to_mapping(recipe), source="manifest") == recipe


def test_presets_are_the_known_ones():
    assert {"bf16", "w3a8", "w4a16", "w4a4", "w4a8", "w6a6", "w8a8"} <= set(PRESETS)
    recipe = Recipe.load("w4a8")
    assert (recipe.blocks.weights, recipe.blocks.activations) == (4, 8)
    assert not Recipe.load("bf16").precision("double_blocks.img.qkv").quantized


@pytest.mark.parametrize(("name", "weights", "activations"), [("w4a4", 4, 4), ("w3a8", 3, 8)])
def test_presets_where_methods_come_apart_differ_from_w4a8_in_the_blocks_only(
    name, weights, activations
):
    recipe, w4a8 = Recipe.load(name), Recipe.load("w4a8")
    blocks = Precision(weights=weights, activations=activations)
    assert replace(recipe, name="", blocks=w4a8.blocks) == replace(w4a8, name="")
    assert recipe.blocks == blocks
    assert blocks.container == 4


def write(folder, text):
    path = folder / "mine.toml"
    path.write_text(text + "[blocks]\nweights = 4\nactivations = 8\n[modulation]\nweights = 4\n[refiner]\nweights = 8\n")  # fmt: skip
    return str(path)


def test_a_file_with_overrides(tmp_path):
    text = (
        '[[overrides]]\npattern = "single_blocks.*"\nprecision = { weights = 8, activations = 8 }\n'
    )
    recipe = Recipe.load(write(tmp_path, text))
    assert recipe.name == "mine"
    assert recipe.overrides[0].precision == Precision(weights=8, activations=8)
    assert recipe.precision("single_blocks.linear1").weights == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotaton = 'none'\n", "unknown key 'rotaton'; did you mean 'rotation'"),
        ("rotation = 'kroneker'\n", "did you mean 'kronecker'"),
        ("rotation_size = 1\n", "must be 2 or more"),
        ("smoothing = 1\n", "expected bool"),
        ('[[overrides]]\npattern = "a["\nprecision = { weights = 8 }\n', "no regular expression"),
        ('[[overrides]]\npattern = "a"\nprecision = { weights = 7 }\n', "W7A16: weights have"),
        ('[[overrides]]\npattern = "a"\nprecision = { weights = 4, activations = 8, group = 64 }\n', "weight-only"),
    ],
)  # fmt: skip
def test_bad_recipes(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        Recipe.load(write(tmp_path, text))


def test_unknown_preset():
    with pytest.raises(InputError, match="no preset 'w4a9' in recipes; did you mean 'w4a8'"):
        Recipe.load("w4a9")


def test_precedence():
    eight, six = Precision(weights=8), Precision(weights=6)
    recipe = replace(
        Recipe.load("w4a8"),
        overrides=(
            Override(pattern=r"double_blocks\..*", precision=eight),
            Override(pattern=r"double_blocks\.txt\..*", precision=six),
            Override(pattern=r"final\.linear", precision=eight),
        ),
    )
    assert recipe.precision("double_blocks.img.qkv") == eight
    assert recipe.precision("double_blocks.txt.qkv") == six
    assert recipe.precision("double_blocks.txt.modulation") == six
    assert recipe.precision("single_blocks.linear2") == recipe.blocks
    assert recipe.precision("single_blocks.modulation") == recipe.modulation
    assert recipe.precision("refiner.blocks.modulation") == recipe.refiner
    assert recipe.precision("refiner.time_embed.fc1") == recipe.refiner
    assert recipe.precision("final.linear") == eight
    for path in ("patch_embed", "time_embed.fc1", "final.modulation"):
        assert not recipe.precision(path).quantized
    # The whole path, not a part of it.
    assert recipe.precision("x.double_blocks.img.qkv") == Precision(weights=16)


def test_an_override_that_matches_nothing_names_the_nearest_layer():
    override = Override(pattern="single_blocks.liner2", precision=Precision(weights=8))
    recipe = replace(Recipe.load("w4a8"), overrides=(override,))
    with pytest.raises(
        InputError, match=r"matches no layer; did you mean 'single_blocks\.linear2'"
    ):
        nnx.eval_shape(lambda: with_quantized_layers(random_dit(), recipe))


def test_groups_must_divide_the_channels():
    override = Override(pattern=".*modulation", precision=Precision(weights=4, group=7))
    recipe = replace(Recipe.load("w4a8"), overrides=(override,))
    with pytest.raises(InputError, match="groups of 7 weights do not divide 48"):
        nnx.eval_shape(lambda: with_quantized_layers(random_dit(), recipe))


def test_both_halves_of_linear2_have_its_precision():
    override = Override(pattern="single_blocks.linear2", precision=Precision(weights=8))
    recipe = replace(Recipe.load("w4a8"), overrides=(override,))
    assert "single_blocks.linear2" in dict(iterate_linears(nnx.eval_shape(random_dit)))
    dit = nnx.eval_shape(lambda: with_quantized_layers(random_dit(), recipe))
    joined = dit.single_blocks.linear2
    assert joined.attention.precision.weights == joined.mlp.precision.weights == 8
    assert (joined.attention.rows, joined.mlp.rows) == (48, 192)
    assert joined.attention.bias is not None
    assert joined.mlp.bias is None
    assert joined.mlp.packed.get_value().dtype == jnp.int8


def test_a_precision_says_its_container():
    assert [Precision(weights=b).container for b in (2, 3, 4, 5, 6, 8)] == [4, 4, 4, 6, 6, 8]
    with pytest.raises(InputError, match="W4A5"):
        Precision(weights=4, activations=5)
