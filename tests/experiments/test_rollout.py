"""Tuning through rollouts: what a rollout holds, and that its loss falls."""

from dataclasses import replace

import numpy as np
import pytest
from evaluate_models import SMALL

import qsjax
from qsjax.calibration import METHODS, calibrate_module, walk
from qsjax.experiments.rollout.__main__ import table
from qsjax.experiments.rollout.tuner import RolloutTuner, rollouts, tune_through_rollouts
from qsjax.quant import Recipe
from qsjax.residual import Residual
from qsjax.sample import SparsePlan
from qsjax.sparse import Sparsity

SIZE = SMALL | {"steps": 4}


@pytest.fixture(scope="module")
def runs_and_plan(tiny_checkpoint):
    pipeline = qsjax.Pipeline.from_checkpoint(tiny_checkpoint, dtype="float32", progress=False)
    runs = walk(pipeline, ["a red circle", "a blue square"], seed=3, **SIZE)
    sparse = SparsePlan(
        sparsity=Sparsity(mask="svg", density=0.3, block=4),
        residual=Residual(store="float32", rank=0),
        interval=2,
        dense_steps=1,
    )
    return pipeline, runs, replace(pipeline.resolve(**SIZE).plan(), sparse=sparse)


def test_a_rollout_is_a_refresh_and_its_sparse_steps(runs_and_plan):
    _, runs, plan = runs_and_plan
    assert plan.kinds == ("refresh", "sparse", "refresh", "sparse")
    found = list(rollouts(runs, plan, 12, batch=1, seed=0))
    assert {tuple(one.at.tolist()) for one in found} == {(0, 0), (0, 2)}
    for one in found:
        # One of the two runs, from the refresh to the end of its interval.
        (run,) = (run for run in runs.latents if (run[0] == one.earlier[0]).all())
        first = int(one.at[1])
        np.testing.assert_array_equal(one.latents[:, 0], run[first : first + 3])


@pytest.mark.slow
def test_the_loss_of_a_rollout_falls(runs_and_plan):
    pipeline, runs, plan = runs_and_plan
    rounded, _ = calibrate_module(
        pipeline.dit, runs.samples(2, 3), Recipe.load("w4a8"), METHODS["rtn"], seed=3
    )
    _, curve = tune_through_rollouts(rounded, runs, RolloutTuner(plan, 16), batch=2, seed=0)
    assert len(curve) == 16
    # Both begin at the first refresh.
    assert curve[-1] < 0.5 * curve[0]


def test_a_table_of_differences():
    one = {"dense, PSNR, dB": np.array([30.0, 31.0]), "dense, latent error": np.array([0.1, 0.2])}
    better = {name: values * 1.1 for name, values in one.items()}
    lines = table({"rounded": one, "step by step": better}).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("rounded", "30.5 +- 0.5", "-3.1 +- 0.1", "0.1500 +- 0.0500", "-0.0150 +- 0.0050"),
    ]
