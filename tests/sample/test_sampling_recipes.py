"""Sampling recipes: every preset is a plan, every field an option, and weights must fit."""

import argparse
from dataclasses import fields

import pytest

from qsjax.cli.sparse import FIELDS, add_sparse_options, sparse_plan
from qsjax.config import configs_directory
from qsjax.errors import InputError
from qsjax.residual import Residual
from qsjax.sample import SparsePlan
from qsjax.sample.recipe import SamplingRecipe
from qsjax.sparse import Sparsity

PRESETS = sorted(path.stem for path in (configs_directory() / "sampling").glob("*.toml"))


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_sparse_options(parser)
    return parser.parse_args(arguments)


def test_there_are_the_presets_that_the_docs_name():
    assert {"quantsparse-w4a8-d15", "quantsparse-w4a8-d25", "quantsparse-w6a6-d15", "svg-d25"} <= set(PRESETS)  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_name_says(name):
    recipe = SamplingRecipe.load(name)
    assert recipe.sparsity.density == int(name.rpartition("d")[2]) / 100
    assert recipe.weights in (name.split("-")[1] if name.startswith("quantsparse") else "", "")
    assert isinstance(recipe.plan(recipe.weights or None), SparsePlan)


def test_every_field_has_an_option():
    nested = {f"{section}.{one.name}" for section, config in (("sparsity", Sparsity), ("residual", Residual)) for one in fields(config)}  # fmt: skip
    top = {one.name for one in fields(SamplingRecipe)} - {"weights", "sparsity", "residual", "dense_layers"}  # fmt: skip
    assert {field for field, _, _ in FIELDS.values()} == nested | top


def test_options_change_a_recipe():
    args = parsed(
        *("--recipe", "quantsparse-w4a8-d15", "--sparse.density", "0.2", "--sparse.interval", "4"),
        *("--residual.policy", "second", "--residual.store", "int4"),
    )
    plan = sparse_plan(args, "w4a8")
    assert plan.sparsity == Sparsity(mask="svg", density=0.2, block=128)
    assert (plan.interval, plan.dense_steps) == (4, 5)
    assert plan.residual == Residual(policy="second", store="int4", rank=16)


def test_lists_of_every_step_are_for_those_that_change():
    plan = sparse_plan(parsed("--sparse.mask", "topk", "--sparse.every-step", "true"), None)
    assert plan.sparsity.every_step
    with pytest.raises(InputError, match="lists of svg do not change"):
        sparse_plan(parsed("--sparse.every-step", "true"), None)


def test_options_alone_make_a_plan_and_no_option_none():
    plan = sparse_plan(parsed("--sparse.mask", "topk", "--sparse.tile", "1x4x4"), None)
    assert plan == SparsePlan(sparsity=Sparsity(mask="topk", tile=(1, 4, 4)))
    assert sparse_plan(parsed(), None) is None


def test_a_file_and_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("interval = 3\n[sparsity]\ndensity = 0.3\n")
    assert SamplingRecipe.load(str(path)).sparsity.density == 0.3
    path.write_text("intervall = 3\n")
    with pytest.raises(InputError, match="did you mean 'interval'"):
        SamplingRecipe.load(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "quantsparse-w4a8-d16"], "did you mean 'quantsparse-w4a8-d15'"),
        (["--recipe", "quantsparse-w4a8-d15"], "calibrate --recipe w4a8"),
        (["--sparse.mask", "svgg"], "did you mean 'svg'"),
        (["--sparse.density", "15"], "shares above 0"),
        (["--sparse.tile", "4x4"], "expected 3 values"),
        (["--residual.rank", "-1"], "rank=-1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        sparse_plan(parsed(*arguments), None)


def test_a_tile_that_is_none_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        parsed("--sparse.tile", "4 by 4")
    assert "as in 1x8x8" in capsys.readouterr().err
