"""Sampling recipes: every preset is a plan, every field an option, and weights must fit."""

import argparse
from dataclasses import fields

import pytest

from qsjax.cli.sparse import FIELDS, add_sparse_options, sampling_changes
from qsjax.config import configs_directory
from qsjax.errors import InputError
from qsjax.residual import Residual
from qsjax.sample import Skip, SparsePlan
from qsjax.sample.recipe import SamplingRecipe
from qsjax.sparse import Sparsity

PRESETS = {path.stem for path in (configs_directory() / "sampling").glob("*.toml")}
SKIPPING = {"teacache"}


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_sparse_options(parser)
    return parser.parse_args(arguments)


def sparse_plan(args, weights):
    return sampling_changes(args, args.recipe, weights)["sparse"]


def test_there_are_the_presets_that_the_docs_name():
    assert {"quantsparse-w4a8-d15", "quantsparse-w4a8-d25", "quantsparse-w6a6-d15", "svg-d25", "teacache"} <= PRESETS  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRESETS - SKIPPING))
def test_a_preset_is_what_its_name_says(name):
    recipe = SamplingRecipe.load(name)
    assert recipe.sparsity.density == int(name.rpartition("d")[2]) / 100
    assert recipe.weights in (name.split("-")[1] if name.startswith("quantsparse") else "", "")
    assert isinstance(recipe.plan(recipe.weights or None), SparsePlan)
    assert recipe.skipping is None


def test_a_preset_that_only_leaves_out_steps():
    changes = sampling_changes(parsed("--recipe", "teacache"), "teacache", "w4a8")
    assert changes["sparse"] is None
    assert changes["skip"].threshold == 0.15
    assert len(changes["skip"].coefficients) == 5


def test_options_of_skipping_leave_attention_alone():
    changes = sampling_changes(parsed("--skip.threshold", "0.2"), None, None)
    assert changes == {"sparse": None, "skip": Skip(threshold=0.2)}
    both = parsed("--skip.threshold", "0.2", "--skip.coefficients", "2,0", "--sparse.mask", "topk")
    changes = sampling_changes(both, "", None)
    assert changes["sparse"].sparsity.mask == "topk"
    assert changes["skip"].coefficients == (2.0, 0.0)


def test_every_field_has_an_option():
    nested = {f"{section}.{one.name}" for section, config in (("sparsity", Sparsity), ("residual", Residual), ("skip", Skip)) for one in fields(config)}  # fmt: skip
    top = {one.name for one in fields(SamplingRecipe)} - {"weights", "sparsity", "residual", "skip", "dense_layers"}  # fmt: skip
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
        (["--residual.place", "hots"], "did you mean 'host'"),
        (["--skip.threshold", "-1"], "skip threshold -1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        sparse_plan(parsed(*arguments), None)


def test_a_tile_that_is_none_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        parsed("--sparse.tile", "4 by 4")
    assert "as in 1x8x8" in capsys.readouterr().err
