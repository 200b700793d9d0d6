"""What one step's error leaves at the end."""

import numpy as np
import pytest
from evaluate_models import SMALL, rounded

import qsjax
from qsjax.evaluate.reference import reference_run
from qsjax.experiments.influence.__main__ import influence, table
from qsjax.progress import Progress


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)


def test_the_last_step_leaves_its_own_error(pipeline):
    reference = reference_run(pipeline, ["a red circle"], seed=1, **SMALL)
    (batch,), plan = reference.batches, reference.settings.plan().dense
    bar = Progress(plan.steps, "influence", unit="step", enabled=False)
    errors, ends = influence(plan, pipeline.dit, rounded(pipeline.dit, 4), batch, bar)
    assert errors.shape == ends.shape == (plan.steps, 1)
    assert (errors > 1e-5).all()
    before, last = batch.trajectory[-2:]
    moved = np.square(last - before).sum() / np.square(last).sum()
    np.testing.assert_allclose(ends[-1], errors[-1] * moved, rtol=1e-4)
    # The model itself leaves nothing.
    _, none = influence(plan, pipeline.dit, pipeline.dit, batch, bar)
    assert (none < 1e-8).all()


def test_shares_of_all_steps_are_one():
    text = table(np.array([[0.01], [0.04]]), np.array([[0.3], [0.1]]))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert cells == [["1", "10.0 %", "0.30000", "75.0 %"], ["2", "20.0 %", "0.10000", "25.0 %"]]
