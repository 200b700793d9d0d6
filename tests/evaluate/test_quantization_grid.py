"""The grid of experiments: rows as data, results row by row, resumption; with a calibrator that only rounds, some methods finer."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from evaluate_models import SMALL, rounded

import qsjax
from qsjax.calibration import Samples
from qsjax.errors import CheckpointError, InputError
from qsjax.evaluate.grid import grid, select
from qsjax.evaluate.quantization import Experiment, calibration_captions
from qsjax.evaluate.report import plain_report, tables_text, write_report
from qsjax.evaluate.results import FILE, Results


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)


FAKE = ("latents", "timestep", "text", "mask", "pooled", "guidance")


class Rounding:
    """Stands for the calibration: weights in the recipe's bits, in two more for a method that learns; counts what it was asked."""

    def __init__(self, broken=()):
        self.captions, self.done, self.broken = [], [], broken

    def collect(self, pipeline, captions, samples, seed):
        assert (samples, seed) == (3, 5)
        self.captions = captions
        return Samples(*FAKE)

    def calibrate(self, dit, samples, recipe, method):
        assert samples == FAKE
        self.done.append((recipe.name, method.name))
        if method.name in self.broken:
            raise InputError(f"{method.name} is broken")
        blocks = [{"end": {"shift": end}, "round_to_nearest": {"shift": 4.0}} for end in (1.0, 2.0)]
        return rounded(dit, recipe.blocks.weights + 2 * method.learns), blocks


def experiment(pipeline, folder, tools, **changes):
    options = {"captions": 2, "samples": 3, "seed": 5, **SMALL, **changes}
    return Experiment(pipeline, folder, calibrate=tools.calibrate, collect=tools.collect, **options)


ROWS = select(grid(), "^W[34]A8( with outliers)?/(rtn|msad)$")


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory):
    folder, tools = tmp_path_factory.mktemp("grid"), Rounding()
    made = experiment(pipeline, folder, tools)
    return folder, tools, made, made.run(ROWS)


def test_rows():
    rows = grid()
    assert len({row.name for row in rows}) == len(rows)
    groups = dict.fromkeys(row.group for row in rows)
    assert {"W4A8", "W6A6", "W4A4", "W3A8", "W4A4 with outliers", "ablation"} <= set(groups)
    by_name = {row.name: row for row in rows}
    # The ablation's full method is the comparison's: it is not run twice.
    assert by_name["ablation/msad"].key == by_name["W4A8/msad"].key
    assert by_name["ablation/msad"].key != by_name["W4A8 with outliers/msad"].key
    forms = [row.recipe.modulation for row in rows if row.group == "modulation beside W4A8"]
    assert [(form.weights, form.group) for form in forms] == [(16, 0), (8, 0), (4, 64), (4, 0)]
    renamed = replace(ROWS[0], recipe=replace(ROWS[0].recipe, name="other"))
    assert renamed.key == ROWS[0].key
    assert replace(ROWS[0], method=replace(ROWS[0].method, epochs=3)).key != ROWS[0].key


def test_selection():
    assert [row.name for row in ROWS[:2]] == ["W4A8/rtn", "W4A8/msad"]
    assert select(grid(), "") == grid()
    with pytest.raises(InputError, match="no regular expression"):
        select(grid(), "(")
    with pytest.raises(InputError, match="groups W4A8, "):
        select(grid(), "W5A5")


def test_outcomes(finished):
    _, tools, made, outcomes = finished
    assert [outcome.row.name for outcome in outcomes] == [row.name for row in ROWS]
    assert len(tools.done) == len(ROWS) == 8
    psnr = {outcome.row.name: outcome.comparison.psnr for outcome in outcomes}
    assert (psnr["W4A8/rtn"] > psnr["W3A8/rtn"]).all()
    # Powers of two do not change what is rounded by output channel, but the largest value of a channel does.
    assert not np.array_equal(psnr["W4A8/rtn"], psnr["W4A8 with outliers/rtn"])
    assert not set(tools.captions) & set(made.captions)
    assert len(set(tools.captions)) == 3


def test_a_second_run_repeats_nothing(pipeline, finished):
    folder, _, _, before = finished
    tools = Rounding()
    again = experiment(pipeline, folder, tools)
    after = again.run(ROWS)
    assert tools.done == []
    assert "reference" not in vars(again)
    assert tables_text(after) == tables_text(before)


def test_an_interrupted_run_goes_on(pipeline, tmp_path):
    class Interrupted(Rounding):
        def calibrate(self, *given):
            if self.done:
                raise KeyboardInterrupt
            return super().calibrate(*given)

    with pytest.raises(KeyboardInterrupt):
        experiment(pipeline, tmp_path, Interrupted()).run(ROWS[:2])
    tools = Rounding()
    outcomes = experiment(pipeline, tmp_path, tools).run(ROWS[:2])
    assert tools.done == [("W4A8", "msad")]
    assert len(outcomes) == 2


def test_a_row_that_fails_is_reported_and_tried_again(pipeline, tmp_path):
    rows = ROWS[:2]
    outcomes = experiment(pipeline, tmp_path, Rounding(broken=["rtn"])).run(rows)
    assert outcomes[0].failure == "rtn is broken"
    assert "failed: rtn is broken" in tables_text(outcomes)
    tools = Rounding()
    outcomes = experiment(pipeline, tmp_path, tools).run(rows)
    assert tools.done == [("W4A8", "rtn")]
    assert all(outcome.failure is None for outcome in outcomes)


def test_a_report(finished):
    folder, _, made, outcomes = finished
    files = write_report(made, outcomes, folder, plots=True)
    assert {path.name for path in files} >= {
        *("tables.md", "w4a8.png", "w4a8-psnr.png", "w3a8-with-outliers-velocity.png"),
    }
    text = (folder / "tables.md").read_text()
    assert text.count("PSNR over rtn, dB") == 4
    report = json.loads(json.dumps(plain_report(made, outcomes), allow_nan=False))
    assert report["run"]["captions"] == 2
    # The last column: the mean of 1 and 2, over 4.
    assert len(re.findall(r"\| 0\.38 +\|\n", text)) == len(ROWS)
    row = report["rows"][1]
    assert row["attention_shift"] == [1.5, 4.0]
    assert (row["group"], row["label"]) == ("W4A8", "msad")
    assert row["psnr"]["count"] == 2
    # Of msad over round-to-nearest, clip by clip: every group has its own baseline, and finer weights are nearer.
    psnr = {outcome.row.name: outcome.comparison.psnr for outcome in outcomes}
    for row in report["rows"]:
        baseline = f"{row['group']}/rtn"
        gain = psnr[f"{row['group']}/{row['label']}"] - psnr[baseline]
        assert ("psnr_difference" in row) == (row["label"] == "msad")
        if row["label"] == "msad":
            assert (gain > 3).all()
            np.testing.assert_allclose(row["psnr_difference"]["mean"], gain.mean(), rtol=1e-6)


def test_blocks_in_sixteen_bits_shift_nothing(finished):
    _, _, _, outcomes = finished
    assert "attention shift |" not in tables_text(
        [one._replace(shift=(0.0, 0.0)) for one in outcomes]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [({"captions": 3}, "captions 2 there and 3 now"), ({"steps": 3}, "settings"), ({}, None)],
)
def test_a_folder_holds_one_run(pipeline, finished, change, message):
    if message is None:
        experiment(pipeline, finished[0], Rounding(), **change)
        return
    with pytest.raises(InputError, match=message):
        experiment(pipeline, finished[0], Rounding(), **change)


def test_a_damaged_file_is_named(tmp_path):
    Results(tmp_path, {"seed": 0}).add("a", {"psnr": [1.0]})
    lines = (tmp_path / FILE).read_text()
    assert json.loads(lines.splitlines()[1]) == {"key": "a", "psnr": [1.0]}
    assert not list(tmp_path.glob(".*"))
    (tmp_path / FILE).write_text(lines[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        Results(tmp_path, {"seed": 0})


def test_calibration_captions_are_others():
    first = calibration_captions(4, avoid=[])
    assert calibration_captions(4, avoid=first[:1])[:3] == first[1:]
    assert len(set(calibration_captions(40, avoid=[]))) == 40


def test_nothing_to_evaluate(pipeline, tmp_path):
    with pytest.raises(InputError, match="at least one"):
        experiment(pipeline, tmp_path, Rounding(), captions=0)
