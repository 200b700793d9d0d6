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
from qsjax.experiments.experiment import calibration_captions
from qsjax.experiments.quantization import (
    QuantizationExperiment,
    QuantizationReport,
    quantization_grid,
)
from qsjax.experiments.quantization.report import tables_text
from qsjax.experiments.results import FILE, Results
from qsjax.experiments.row import select


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)


FAKE = ("latents", "timestep", "text", "mask", "pooled", "guidance")


class Rounding(QuantizationExperiment):
    """Its calibration only rounds: weights in the recipe's bits, in two more for a method that learns. Counts what it was asked."""

    def __init__(self, pipeline, folder, *, broken=(), **changes):
        options = {"captions": 2, "samples": 3, "seed": 5, **SMALL, **changes}
        super().__init__(pipeline, folder, **options)
        self.calibration_captions, self.done, self.broken = [], [], broken

    def _collect(self, captions):
        self.calibration_captions = captions
        return Samples(*FAKE)

    def _calibrate(self, row, samples):
        assert samples == FAKE
        self.done.append((row.recipe.name, row.method.name))
        if row.method.name in self.broken:
            raise InputError(f"{row.method.name} is broken")
        blocks = [{"end": {"shift": end}, "round_to_nearest": {"shift": 4.0}} for end in (1.0, 2.0)]
        dit = self.dit_with_outliers if row.outliers else self._pipeline.dit
        return rounded(dit, row.recipe.blocks.weights + 2 * row.method.learns), blocks


ROWS = select(quantization_grid(), "^W[34]A8( with outliers)?/(rtn|msad)$")


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    made = Rounding(pipeline, folder)
    return folder, made, made.run(ROWS)


def test_rows():
    rows = quantization_grid()
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
    assert select(quantization_grid(), "") == quantization_grid()
    with pytest.raises(InputError, match="no regular expression"):
        select(quantization_grid(), "(")
    with pytest.raises(InputError, match="groups W4A8, "):
        select(quantization_grid(), "W5A5")


def test_outcomes(finished):
    _, made, outcomes = finished
    assert [outcome.row.name for outcome in outcomes] == [row.name for row in ROWS]
    assert len(made.done) == len(ROWS) == 8
    psnr = {outcome.row.name: outcome.comparison.psnr for outcome in outcomes}
    assert (psnr["W4A8/rtn"] > psnr["W3A8/rtn"]).all()
    # Powers of two do not change what is rounded by output channel, but the largest value of a channel does.
    assert not np.array_equal(psnr["W4A8/rtn"], psnr["W4A8 with outliers/rtn"])
    assert not set(made.calibration_captions) & set(made.captions)
    assert len(set(made.calibration_captions)) == 3


def test_a_second_run_repeats_nothing(pipeline, finished):
    folder, _, before = finished
    again = Rounding(pipeline, folder)
    after = again.run(ROWS)
    assert again.done == []
    assert not again._references
    assert tables_text(after) == tables_text(before)


def test_an_interrupted_run_goes_on(pipeline, tmp_path):
    class Interrupted(Rounding):
        def _calibrate(self, row, samples):
            if self.done:
                raise KeyboardInterrupt
            return super()._calibrate(row, samples)

    with pytest.raises(KeyboardInterrupt):
        Interrupted(pipeline, tmp_path).run(ROWS[:2])
    again = Rounding(pipeline, tmp_path)
    outcomes = again.run(ROWS[:2])
    assert again.done == [("W4A8", "msad")]
    assert len(outcomes) == 2


def test_a_row_that_fails_is_reported_and_tried_again(pipeline, tmp_path):
    rows = ROWS[:2]
    outcomes = Rounding(pipeline, tmp_path, broken=["rtn"]).run(rows)
    assert outcomes[0].failure == "rtn is broken"
    assert "failed: rtn is broken" in tables_text(outcomes)
    again = Rounding(pipeline, tmp_path)
    outcomes = again.run(rows)
    assert again.done == [("W4A8", "rtn")]
    assert all(outcome.failure is None for outcome in outcomes)


def test_a_report(finished):
    folder, made, outcomes = finished
    report = QuantizationReport(made, outcomes)
    files = report.write(folder, plots=True)
    assert {path.name for path in files} >= {
        *("tables.md", "w4a8.png", "w4a8-psnr.png", "w3a8-with-outliers-velocity.png"),
    }
    text = (folder / "tables.md").read_text()
    assert text.count("PSNR over rtn, dB") == 4
    report = json.loads(json.dumps(report.plain(), allow_nan=False))
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
    _, _, outcomes = finished
    assert "attention shift |" not in tables_text(
        [one._replace(shift=(0.0, 0.0)) for one in outcomes]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [({"captions": 3}, "captions 2 there and 3 now"), ({"steps": 3}, "settings"), ({}, None)],
)
def test_a_folder_holds_one_run(pipeline, finished, change, message):
    if message is None:
        Rounding(pipeline, finished[0], **change)
        return
    with pytest.raises(InputError, match=message):
        Rounding(pipeline, finished[0], **change)


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
        Rounding(pipeline, tmp_path, captions=0)
