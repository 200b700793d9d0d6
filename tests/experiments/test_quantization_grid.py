"""The grid of experiments: rows as data, results row by row, resumption; with a calibrator that only rounds, some methods finer."""

import json
import os
import re
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from evaluate_models import SMALL, rounded

import qsjax
from qsjax.calibration import Samples, Trajectories
from qsjax.errors import CheckpointError, InputError
from qsjax.evaluate.captions import caption_scores
from qsjax.experiments import calibrations
from qsjax.experiments.calibrations import Calibrations
from qsjax.experiments.clips import calibration_captions
from qsjax.experiments.hours import Hours
from qsjax.experiments.quantization import (
    QuantizationExperiment,
    QuantizationReport,
    quantization_grid,
)
from qsjax.experiments.quantization.grid import COMPARED, Rank
from qsjax.experiments.quantization.report import lines, tables_text
from qsjax.experiments.results import FILE, Results
from qsjax.experiments.row import select
from qsjax.quant import Recipe
from qsjax.tiny.streams import STREAMS


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)


FAKE = ("latents", "timestep", "text", "mask", "pooled", "guidance")


class Rounded(Calibrations):
    """Only rounds: weights in the recipe's bits, in two more with error feedback, in one more for every seed. Counts what it was
    asked."""

    def __init__(self, *arguments, broken, **settings):
        super().__init__(*arguments, **settings)
        self.collected, self.done, self.broken = {}, [], broken

    def _collect(self, captions, seed):
        self.collected[seed] = captions
        return Samples(*FAKE)

    def quantized(self, recipe, method, *, outliers="none", seed=0):
        assert self.samples(seed) == FAKE
        self.done.append((recipe, method, outliers, seed))
        if method.name in self.broken:
            raise InputError(f"{method.name} is broken")
        blocks = [{"end": {"shift": end}, "round_to_nearest": {"shift": 4.0}} for end in (1.0, 2.0)]
        bits = recipe.blocks.weights + 2 * (method.rounding == "gptq") + seed
        return rounded(self.float_model(outliers), bits), blocks


class Rounding(QuantizationExperiment):
    """With such calibrations."""

    def __init__(self, pipeline, folder, *, broken=(), **changes):
        options = {"captions": 2, "samples": 3, **SMALL, **changes}
        super().__init__(pipeline, folder, **options)
        self.calibrations = Rounded(pipeline, self.clips, 3, broken=broken, **SMALL)

    @property
    def done(self):
        """Names of the rows that were calibrated."""
        rows = {(r.recipe, r.method, r.outliers, r.seed): r.name for r in quantization_grid()}
        return [rows[one] for one in self.calibrations.done]


ROWS = select(quantization_grid(), "^W(4A8|6A6)( with outliers, channels)?/(rtn|gptq), seed [01]$")


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    made = Rounding(pipeline, folder)
    return folder, made, made.run(ROWS)


def test_rows():
    rows = quantization_grid()
    assert len({row.name for row in rows}) == len(rows)
    by_name = {row.name: row for row in rows}
    # The ablation's full method is the comparison's: it is not run twice.
    full = by_name["ablation, W4A8 + gptq/both, seed 1"]
    assert full.key == by_name["W4A8/msad + gptq, seed 1"].key
    assert full.key != by_name["W4A8/msad + gptq, seed 0"].key
    outliers = by_name["W4A8 with outliers, channels/msad + gptq, seed 0"]
    assert outliers.key != by_name["W4A8/msad + gptq, seed 0"].key
    renamed = replace(ROWS[0], recipe=replace(ROWS[0].recipe, name="other"), rank=Rank.REST)
    assert renamed.key == ROWS[0].key
    assert replace(ROWS[0], method=replace(ROWS[0].method, epochs=3)).key != ROWS[0].key


def test_tables():
    """What is compared where; all but the parts by themselves are of whole recipes."""
    members = groupby(quantization_grid(), key=lambda row: row.group)
    tables = {name: list(rows) for name, rows in members}
    labels = {name: [row.label for row in rows if row.seed == 0] for name, rows in tables.items()}
    both = [label for name in COMPARED for label in (name, f"{name} + gptq")]
    assert set(both) < set(labels["W4A8"])
    assert set(both) < set(labels["W4A4"])
    for name in ("W4A8", "W6A6", "W4A4", "W3A8"):
        assert labels[name][0] == "rtn"
        three = [row for row in tables[name] if row.label in ("gptq", "tuned")]
        assert [row.seed for row in three] == ([0, 0] if name == "W3A8" else [0, 1, 2, 0, 1, 2])
    assert {"nearest"} == {r.method.rounding for r in tables["W6A6"] if r.label == "rtn"}
    for name, rows in tables.items():
        preset = Recipe.load(name.split()[0].lower() if name.startswith("W") else "w4a8")
        assert name == "one part alone" or {row.recipe for row in rows} == {preset}


def test_the_ablation_differs_in_attention_terms_only():
    rows = [row for row in quantization_grid() if row.group.startswith("ablation")]
    terms = {"name": "", "global_weight": 0.0, "local_weight": 0.0, "rows": "salient"}
    assert len({replace(row.method, **terms) for row in rows}) == 1
    assert {row.method.rounding for row in rows} == {"gptq"}
    weights = {row.label: (row.method.global_weight, row.method.local_weight) for row in rows}
    assert list(weights.values()) == [(0, 0), (1, 0), (0, 1), (1, 1), (1, 1), (0, 1)]
    assert [row.seed for row in rows] == 6 * [0, 1, 2]


def test_what_no_sample_changes_has_one_seed():
    fixed = {row.label for row in quantization_grid() if row.fixed}
    assert {"rtn", "quarot", "refiner, 8 bits"} < fixed
    assert not {"smoothquant", "rtn + gptq", "gptq", "msad", "gptq + tuning"} & fixed


def test_selection():
    assert [row.name for row in ROWS[:2]] == ["W4A8/rtn, seed 0", "W4A8/gptq, seed 0"]
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
    assert (psnr["W6A6/rtn, seed 0"] > psnr["W4A8/rtn, seed 0"]).all()
    # Powers of two do not change what is rounded by output channel, but the largest value of a channel does.
    assert not np.array_equal(
        psnr["W4A8/rtn, seed 0"], psnr["W4A8 with outliers, channels/rtn, seed 0"]
    )


def test_what_matters_most_comes_first(finished):
    made = finished[1]
    first = [f"{bits}/{name}, seed 0" for bits in ("W4A8", "W6A6") for name in ("rtn", "gptq")]
    assert made.done[:6] == [*first, "W4A8/gptq, seed 1", "W6A6/gptq, seed 1"]
    assert made.done[-2:] == [
        f"W4A8 with outliers, channels/{name}, seed 0" for name in ("rtn", "gptq")
    ]
    # Nothing that a table promises waits for the ablation, and one seed of a table's rows for none of the next.
    order = made._order(quantization_grid())
    ranks = [row.rank for row in order]
    assert ranks == sorted(ranks)
    assert {row.seed for row in order if row.rank is Rank.METHODS} == {0}


def test_calibrations_share_neither_captions_nor_noise(finished):
    made = finished[1]
    first, second = made.calibrations.collected.values()
    assert set(made.calibrations.collected) == {0, 1000}
    assert len({*first, *second, *made.clips.captions}) == 2 * 3 + 2
    assert made.reference(ROWS[0]).seed == STREAMS["report"].noise


def test_captions_and_noise_of_choices_are_others(pipeline, finished, tmp_path):
    made = Rounding(pipeline, tmp_path, stream="choice")
    assert not set(made.clips.captions) & set(finished[1].clips.captions)
    assert made.facts["stream"] == "choice"
    assert made.reference(ROWS[0]).seed == STREAMS["choice"].noise
    with pytest.raises(InputError, match="did you mean 'report'"):
        Rounding(pipeline, tmp_path, stream="reports")


def test_a_second_run_repeats_nothing(pipeline, finished):
    folder, made, before = finished
    again = Rounding(pipeline, folder)
    after = again.run(ROWS)
    assert again.done == []
    assert not again._references
    assert QuantizationReport(again, after).text() == QuantizationReport(made, before).text()


def test_an_interrupted_run_goes_on(pipeline, tmp_path):
    class Interrupted(Rounded):
        def quantized(self, recipe, method, **options):
            if self.done:
                raise KeyboardInterrupt
            return super().quantized(recipe, method, **options)

    made = Rounding(pipeline, tmp_path)
    made.calibrations = Interrupted(pipeline, made.clips, 3, broken=(), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        made.run(ROWS[:2])
    again = Rounding(pipeline, tmp_path)
    outcomes = again.run(ROWS[:2])
    assert again.done == ["W4A8/gptq, seed 0"]
    assert len(outcomes) == 2


def test_a_row_that_fails_is_reported_and_tried_again(pipeline, tmp_path):
    rows = ROWS[:2]
    made = Rounding(pipeline, tmp_path, broken=["rtn"])
    outcomes = made.run(rows)
    assert outcomes[0].failure == "rtn is broken"
    report = QuantizationReport(made, outcomes)
    assert "failed: rtn is broken" in report.text()
    assert [row.get("failure") for row in report.plain()["rows"]] == ["rtn is broken", None]
    again = Rounding(pipeline, tmp_path)
    outcomes = again.run(rows)
    assert again.done == ["W4A8/rtn, seed 0"]
    assert all(outcome.failure is None for outcome in outcomes)


def test_a_seed_that_fails_is_no_reason_to_hide_the_others(finished):
    outcomes = list(finished[2])
    assert outcomes[2].row.seed == 1
    outcomes[2] = outcomes[2]._replace(comparison=None, failure="broken")
    line = lines(outcomes)[1]
    assert list(line.results.by_seed) == [0]
    assert line.failure == "broken"


def test_a_report(finished):
    folder, made, outcomes = finished
    report = QuantizationReport(made, outcomes)
    files = report.write(folder, plots=True)
    assert {path.name for path in files} >= {
        *("tables.md", "w4a8.png", "w4a8-figures.png", "w4a8-with-outliers-channels-velocity.png"),
    }
    text = (folder / "tables.md").read_text()
    assert text.count("PSNR over rtn, dB") == text.count("error over rtn") == 3
    assert text.count("| full precision ") == 3
    report = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert report["run"]["captions"] == 2
    # The last column: the mean of 1 and 2, over 4.
    assert len(re.findall(r"\| 0\.38 +\|\n", text)) == 2 * 3
    row = report["rows"][1]
    assert row["attention_shift"] == 0.375
    assert (row["group"], row["label"]) == ("W4A8", "gptq")
    assert (row["psnr"]["count"], row["psnr"]["seeds"]) == (2, 2)


def test_differences_are_those_of_seeds_and_clips(finished):
    """To a baseline that has one seed, since none changes it."""
    _, made, outcomes = finished
    rows = QuantizationReport(made, outcomes).plain()["rows"]
    found = {outcome.row.name: outcome.comparison for outcome in outcomes}
    for group in ("W4A8", "W6A6"):
        base, *seeds = (
            found[f"{group}/{one}"] for one in ("rtn, seed 0", "gptq, seed 0", "gptq, seed 1")
        )
        gains = np.stack([one.psnr - base.psnr for one in seeds])
        assert (gains > 3).all()
        first, second = (row for row in rows if row["group"] == group)
        assert "psnr_difference" not in first
        assert second["psnr_difference"]["mean"] == pytest.approx(gains.mean())
        closer = np.mean([one.velocity for one in seeds]) - base.velocity.mean()
        assert second["velocity_difference"]["mean"] == pytest.approx(closer)
        assert closer < 0


def test_captions_are_read_from_the_videos(finished):
    """Of compressed models and of full precision alike: at this size nothing is recognized, and a share of clips is 0 or more."""
    _, made, outcomes = finished
    assert all(outcome.comparison.caption_score.shape == (2,) for outcome in outcomes)
    scores = made.reference(ROWS[0]).clips(2), made.clips.scenes
    assert made.full_score().mean == caption_scores(*scores).mean()


def test_blocks_in_sixteen_bits_shift_nothing(finished):
    _, _, outcomes = finished
    nothing = lines([one._replace(shift=(0.0, 0.0)) for one in outcomes])
    assert "attention shift |" not in tables_text(nothing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": 3}, "'captions' 2 there and 3 now"),
        ({"steps": 3}, "settings"),
        ({"stream": "choice"}, "'stream' 'report' there and 'choice' now"),
        ({}, None),
    ],
)
def test_a_folder_holds_one_run(pipeline, finished, change, message):
    if message is None:
        Rounding(pipeline, finished[0], **change)
        return
    with pytest.raises(InputError, match=message):
        Rounding(pipeline, finished[0], **change)


def test_one_process_writes_to_a_folder_and_sees_what_others_wrote(tmp_path):
    one, other = (Results(tmp_path, {"seed": 0}) for _ in range(2))
    with one.held(["a", "b"]):
        one.add("a", {"psnr": [1.0]})
        with pytest.raises(InputError, match="is at work there"), other.held(["c"]):
            raise AssertionError
    assert other.get("a") is None
    with other.held(["c"]):
        other.add("c", {"psnr": [2.0]})
    found = Results(tmp_path, {"seed": 0})
    assert found.get("a") == {"key": "a", "psnr": [1.0]}
    assert found.get("c") == {"key": "c", "psnr": [2.0]}
    assert os.listdir(tmp_path) == ["results.jsonl"]


def test_a_damaged_file_is_named(tmp_path):
    Results(tmp_path, {"seed": 0}).add("a", {"psnr": [1.0]})
    lines = (tmp_path / FILE).read_text()
    assert json.loads(lines.splitlines()[1]) == {"key": "a", "psnr": [1.0]}
    assert not list(tmp_path.glob(".*"))
    (tmp_path / FILE).write_text(lines[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        Results(tmp_path, {"seed": 0})


def test_rows_of_the_older_protocol_are_not_mixed_with_new_ones(pipeline, tmp_path):
    """They were measured on captions that had chosen things."""
    older = {"model": "017a3122a4a76517", "captions": 2, "samples": 3, "seed": 0, "settings": {}}
    Results(tmp_path, older).add("a", {"psnr": [1.0]})
    with pytest.raises(InputError, match="'stream' None there and 'report' now"):
        Rounding(pipeline, tmp_path)


def test_labels_are_those_of_the_grid(pipeline, tmp_path):
    """Of the one that reads them, not of the one that stored them."""
    row, other = ROWS[0], ROWS[1]
    Rounding(pipeline, tmp_path).run([replace(row, label="an older name"), other])
    Rounding(pipeline, tmp_path).run([row])
    stored = [json.loads(line)["row"] for line in (tmp_path / FILE).read_text().splitlines()[1:]]
    assert stored == ["full precision", "W4A8/rtn, seed 0", "W4A8/gptq, seed 0"]
    # Now another experiment has the second one's name.
    again = Rounding(pipeline, tmp_path)
    again._results.relabel({row.key: other.name})
    stored = [json.loads(line)["row"] for line in (tmp_path / FILE).read_text().splitlines()[1:]]
    assert stored[1:] == ["W4A8/gptq, seed 0", "W4A8/gptq, seed 0 (of an older grid)"]


def test_a_tuned_row_gets_the_runs_of_its_samples(pipeline, tmp_path, monkeypatch):
    """Captions and noise of its own seed; rows without tuning need no runs."""
    walked, given = [], []

    def walk(_, captions, *, seed, **options):
        walked.append((captions, seed))
        nothing = np.zeros((0, 1), np.float32)
        return Trajectories(
            [], nothing[:, 0], nothing[:, 0], nothing[..., None], nothing > 0, nothing
        )

    def calibrate(dit, *_, trajectories, seed, **options):
        given.append((trajectories is not None, seed))
        return dit, []

    monkeypatch.setattr(calibrations, "walk", walk)
    monkeypatch.setattr(calibrations, "calibrate_module", calibrate)
    monkeypatch.setattr(calibrations, "collect", lambda *_, **options: Samples(*FAKE))
    made = QuantizationExperiment(pipeline, tmp_path, captions=1, samples=2, **SMALL)
    for row in select(quantization_grid(), "^W4A8/(tuned|rtn), seed [01]$"):
        made.calibrations.quantized(row.recipe, row.method, seed=row.seed)
    noise = [made.clips.calibration_noise(seed) for seed in (0, 1)]
    assert given == [(False, noise[0]), (True, noise[0]), (True, noise[1])]
    assert walked == [(made.clips.calibration_captions(2, seed), noise[seed]) for seed in (0, 1)]
    assert not set(walked[0][0]) & set(walked[1][0])


def test_time_that_is_left():
    hours = Hours()
    assert hours.left(["a"]) == "an unknown time"
    for kind, seconds in (("a", 60.0), ("a", 120.0), ("b", 1800.0), ("a", 0.0)):
        hours.add(kind, seconds)
    assert hours.left(["a", "a", "b"]) == "33 minutes"
    assert hours.left(["b", "b", "c"]) == "1.3 hours"


def test_a_run_says_how_much_is_left(pipeline, tmp_path, caplog):
    caplog.set_level("INFO", "qsjax.experiments")
    Rounding(pipeline, tmp_path).run(ROWS[:2])
    assert [m for m in caplog.messages if "left" in m] == ["1 rows and about 0 minutes left"]


def test_calibration_captions_are_others():
    first = calibration_captions(4, avoid=[])
    assert calibration_captions(4, avoid=first[:1])[:3] == first[1:]
    assert len(set(calibration_captions(40, avoid=[]))) == 40


def test_nothing_to_evaluate(pipeline, tmp_path):
    with pytest.raises(InputError, match="at least one"):
        Rounding(pipeline, tmp_path, captions=0)
