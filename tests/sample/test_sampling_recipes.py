"""Sampling recipes: every preset is a plan, every field an option, and weights must fit."""

import argparse
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from jaxtyping import TypeCheckError

from qsjax.cli.fields import meanings
from qsjax.cli.options import Options, add_config, with_config
from qsjax.cli.sparse import add_sparse_options, chosen_recipe
from qsjax.config import check_choices, configs_directory, to_mapping
from qsjax.errors import InputError
from qsjax.residual.store import BYTES
from qsjax.settings import (
    FAMILIES,
    REFRESH,
    SPARSE,
    Residual,
    SamplingPlan,
    SamplingRecipe,
    Settings,
    Skip,
    SparsePlan,
    Sparsity,
)
from qsjax.settings.recipe import SECTIONS
from qsjax.settings.residual import Store
from qsjax.settings.sparsity import CHOSEN
from qsjax.sparse import masks

PRESETS = {path.stem for path in (configs_directory() / "sampling").glob("*.toml")}
SKIPPING = {"teacache"}


def options():
    made = Options(argparse.ArgumentParser())
    add_sparse_options(made)
    return made


def parsed(*arguments):
    return options().parser.parse_args(arguments)


def chosen(*arguments, weights=None, stored=None):
    recipe = chosen_recipe(parsed(*arguments), stored)
    if recipe is not None:
        recipe.require_weights(weights)
    return recipe


def test_there_are_the_presets_that_the_docs_name():
    assert {"quantsparse-w4a8-d15", "quantsparse-w4a8-d25", "quantsparse-w6a6-d15", "svg-d25", "teacache"} <= PRESETS  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRESETS - SKIPPING))
def test_a_preset_is_what_its_name_says(name):
    recipe = SamplingRecipe.load(name)
    assert recipe.sparse.sparsity.density == int(name.rpartition("d")[2]) / 100
    assert recipe.weights in (name.split("-")[1] if name.startswith("quantsparse") else "", "")
    assert recipe.skip is None


@pytest.mark.parametrize(
    ("name", "full"),
    [("few-steps-4-d25", {0, 2}), ("few-steps-6-d25", {0, 3}), ("few-steps-8-d15", {0, 2, 5})],
)
def test_a_preset_for_few_steps_has_most_of_them_sparse(name, full):
    steps = int(name.split("-")[2])
    kinds = SamplingRecipe.load(name).sparse.kinds(steps)
    assert {step for step, kind in enumerate(kinds) if kind == REFRESH} == full
    assert set(kinds) == {REFRESH, SPARSE}


def test_a_plan_knows_that_nothing_of_it_is_sparse():
    full = SparsePlan(dense_steps=5)
    assert SamplingPlan(steps=5, sparse=full).never_sparse
    assert SamplingPlan(steps=2, sparse=SparsePlan(interval=1)).never_sparse
    assert not SamplingPlan(steps=6, sparse=full).never_sparse
    assert not SamplingPlan(steps=6, sparse=SparsePlan(drift=0.1)).never_sparse
    assert not SamplingPlan(steps=1).never_sparse


def test_a_preset_that_only_leaves_out_steps():
    recipe = chosen("--recipe", "teacache", weights="w4a8")
    assert recipe.sparse is None
    assert recipe.skip.threshold == 0.15
    assert len(recipe.skip.coefficients) == 5


def test_options_of_skipping_leave_attention_alone():
    assert chosen("--skip.threshold", "0.2") == SamplingRecipe(skip=Skip(threshold=0.2))
    both = ("--skip.threshold", "0.2", "--skip.coefficients", "2,0", "--sparsity.mask", "topk")
    assert chosen(*both).sparse.sparsity.mask == "topk"
    assert chosen(*both).skip.coefficients == (2.0, 0.0)


def test_every_field_has_an_option_a_meaning_and_a_place_in_a_file():
    help_text = " ".join(options().parser.format_help().split())
    for section, config in SECTIONS.items():
        texts = meanings(config)
        for one in fields(config):
            assert len(texts[one.name]) > 8, (section, one.name)
            if one.name not in SECTIONS:
                assert f"--{section}.{one.name.replace('_', '-')} " in help_text
    assert "{svg,svg-window,dense,band,window,sta,radial,box,topk,topp}" in help_text
    assert "--sparse.mask" not in help_text


def test_the_masks_of_the_options_are_those_that_there_are():
    assert set(FAMILIES) == {"svg", "svg-window", *masks.STATIC, *CHOSEN}
    assert set(get_args(Store)) == set(BYTES)


def test_options_change_a_recipe():
    new = (
        *("--recipe", "quantsparse-w4a8-d15", "--sparsity.density", "0.2", "--sparse.interval", "4"),
        *("--residual.policy", "second", "--residual.store", "int4", "--sparse.dense-layers", "0,3"),
    )  # fmt: skip
    plan = chosen(*new, weights="w4a8").sparse
    assert plan.sparsity == Sparsity(mask="svg", density=0.2, block_kv=128)
    assert (plan.interval, plan.dense_steps, plan.dense_layers) == (4, 5, (0, 3))
    assert plan.residual == Residual(policy="second", store="int4", rank=16)
    old = [word.replace("--sparsity.", "--sparse.") for word in new]
    assert chosen(*old, weights="w4a8").sparse == plan


def test_options_change_what_the_checkpoint_has_stored():
    stored = SamplingPlan(sparse=SparsePlan(interval=9), skip=Skip(threshold=0.3))
    recipe = chosen("--sparsity.density", "0.4", stored=stored)
    assert (recipe.sparse.interval, recipe.sparse.sparsity.density) == (9, 0.4)
    assert recipe.skip == stored.skip
    assert (
        chosen("--sparsity.mask", "dense", "--skip.threshold", "0", stored=stored)
        == SamplingRecipe()
    )


def test_another_placement_of_refreshes_takes_the_place_of_the_recipes(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[sparse]\nrefresh_at = [0.1, 0.5]\ndense_steps = 2\n")

    def placed(*options):
        plan = chosen("--recipe", str(path), *options).sparse
        return plan.refresh_at, plan.drift, plan.interval, plan.dense_steps

    assert placed() == ((0.1, 0.5), 0.0, 5, 2)
    assert placed("--sparse.interval", "7") == ((), 0.0, 7, 2)
    assert placed("--sparse.drift", "0.2") == ((), 0.2, 5, 2)
    assert placed("--sparse.refresh-at", "0.3") == ((0.3,), 0.0, 5, 2)
    assert placed("--sparse.dense-steps", "3") == ((0.1, 0.5), 0.0, 5, 3)
    stored = SamplingPlan(sparse=SparsePlan(drift=0.2))
    assert chosen("--sparse.refresh-at", "0.3", stored=stored).sparse.drift == 0


def test_one_size_of_block_is_an_old_spelling_of_two(tmp_path):
    both = Sparsity(block_q=64, block_kv=64)
    assert Sparsity(block=64) == both
    assert replace(Sparsity(block=64), density=0.2) == replace(both, density=0.2)
    for option in ("--sparsity.block", "--sparse.block"):
        assert chosen(option, "64").sparse.sparsity == both
        named = chosen("--recipe", "svg-d25", option, "64").sparse.sparsity
        assert named == replace(both, density=0.25)
    path = tmp_path / "mine.toml"
    path.write_text("[sparsity]\nblock = 64\n")
    assert SamplingRecipe.load(str(path)).sparse.sparsity == both
    wider = chosen("--recipe", str(path), "--sparsity.block-q", "256").sparse.sparsity
    assert wider == Sparsity(block_q=256, block_kv=64)
    stored = {"sparse": {"sparsity": {"mask": "topk", "block": 64}}}
    assert Settings.stored(stored).sparse.sparsity == replace(both, mask="topk")
    assert "block" not in to_mapping(both)
    assert "sparsity.block " not in " ".join(options().parser.format_help().split())


def test_lists_of_every_step_are_for_those_that_change():
    assert chosen(
        "--sparsity.mask", "topk", "--sparsity.every-step", "true"
    ).sparse.sparsity.every_step
    with pytest.raises(InputError, match="lists of svg do not change"):
        chosen("--sparsity.every-step", "true")


def test_options_alone_make_a_plan_and_no_option_none():
    plan = chosen("--sparsity.mask", "topk", "--sparsity.tile", "1x4x4").sparse
    assert plan == SparsePlan(sparsity=Sparsity(mask="topk", tile=(1, 4, 4)))
    assert chosen() is None


def test_a_file_old_or_new_and_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("interval = 3\n[sparsity]\ndensity = 0.3\n")
    old = SamplingRecipe.load(str(path))
    path.write_text("[sparse]\ninterval = 3\n[sparsity]\ndensity = 0.3\n")
    assert SamplingRecipe.load(str(path)) == old
    assert (old.sparse.interval, old.sparse.sparsity.density) == (3, 0.3)
    for text, message in (
        ("intervall = 3\n", "did you mean 'interval'"),
        ("[sparse]\nintervall = 3\n", "did you mean 'interval'"),
        ("sparsity = 3\n", "expected a table, found 3"),
        ("[sparsity]\nmask = 3\n", "expected str, found 3"),
        ("[residual]\nplace = 'hots'\n", "place: no 'hots'; did you mean 'host'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            SamplingRecipe.load(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "quantsparse-w4a8-d16"], "did you mean 'quantsparse-w4a8-d15'"),
        (["--recipe", "quantsparse-w4a8-d15"], "calibrate --weights w4a8"),
        (["--sparsity.density", "15"], "shares above 0"),
        (["--sparsity.tile", "4x4"], "expected 3 values"),
        (["--residual.rank", "-1"], "rank=-1"),
        (["--skip.threshold", "-1"], "skip threshold -1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        chosen(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity.tile", "4 by 4"], "as in 1x8x8"),
        (["--sparsity.mask", "svgg"], "invalid choice: 'svgg'"),
        (["--sparse.every-step", "yes"], "give true or false"),
        (["--skip.coefficients", "1;2"], "numbers with commas"),
    ],
)
def test_what_the_parser_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert message in capsys.readouterr().err


def from_file(path, text):
    """The recipe of options in a file of `--config`."""
    path.write_text(text)
    made = options()
    add_config(made)
    return chosen_recipe(with_config(made, made.parser.parse_args(["--config", str(path)])))


def test_options_in_a_file_are_read_as_if_they_were_typed(tmp_path):
    path = tmp_path / "options.toml"
    lines = (
        *(
            "'sparsity.mask' = 'topk'",
            "'sparsity.tile' = [1, 4, 4]",
            "'sparsity.every-step' = true",
        ),
        *("'sparse.density' = 0.2", "'sparse.dense-layers' = [0, 3]", "'skip.threshold' = 1"),
    )
    found = from_file(path, "\n".join(lines))
    sparsity = Sparsity(mask="topk", tile=(1, 4, 4), every_step=True, density=0.2)
    assert found.sparse == SparsePlan(sparsity=sparsity, dense_layers=(0, 3))
    assert found.skip == Skip(threshold=1.0)
    for line, message in (
        ("'sparsity.mask' = 'svgg'", "did you mean 'svg'"),
        ("'sparsity.tile' = '4 by 4'", "as in 1x8x8"),
        ("'sparsity.every-step' = 1", "give true or false"),
        ("'sparse.interval' = 2.5", "does not fit"),
        ("'sparse.interval' = {a = 1}", "neither a text nor a number"),
        ("'sparse.intervall' = 2", "did you mean 'sparse.interval'"),
    ):
        with pytest.raises(InputError, match=message):
            from_file(path, line)


@dataclass(frozen=True)
class Worded:
    color: Literal["red", "green"] = "red"

    def __post_init__(self):
        check_choices(self)


def test_a_word_that_is_none_is_refused_by_python_too():
    """On a class of this file: the suite's own checks of types refuse it elsewhere."""
    assert Worded(color="green").color == "green"
    with pytest.raises(InputError, match="no color 'reed'; did you mean 'red'"):
        Worded(color="reed")


@pytest.mark.parametrize("config", [Sparsity(), Residual(), SparsePlan()])
def test_words_that_are_none_are_refused(config):
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            wrong = get_args(hint)[0] + "x"
            with pytest.raises((InputError, TypeCheckError), match=wrong):
                replace(config, **{name: wrong})
