"""What calibration costs: passes, hours and disk against counts by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from qsjax.budget import CalibrationPlan, Device, PlannedModel, Size, Weights
from qsjax.budget.calibration import SHARE_OF_PEAK
from qsjax.budget.calibration_memory import WIDTHS, calibration_stages, inputs_fit
from qsjax.budget.passes import FLOAT32, PLANNED
from qsjax.calibration.moments import sampled_steps
from qsjax.cli import main
from qsjax.dit import DiTConfig
from qsjax.errors import InputError
from qsjax.quant import Recipe

DIT = DiTConfig.preset("hunyuan-video-13b")
WIDTH, MLP, TOKENS = 3072, 4 * 3072, 32_896
LINEARS = 60 * 24 * WIDTH**2 * TOKENS
ATTENTION = 60 * 4 * WIDTH * TOKENS**2
SIZE = Size(frames=61, height=544, width=960, video_tokens=TOKENS - 256, text_tokens=256)
SAMPLED = 30
TUNED = replace(PLANNED["msad"], tune_steps=150)


def plan(method, **changes):
    return CalibrationPlan(dit=DIT, size=SIZE, method=method, **changes)


def plan_json(capsys, *arguments):
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["calibration"]


def test_passes_by_hand():
    passes = plan(TUNED).passes()
    assert passes["observing"] == SAMPLED * (LINEARS + ATTENTION * 3 // 2)
    assert passes["measuring"] == 3 * SAMPLED * (LINEARS * 5 // 4 + ATTENTION)
    assert passes["comparing layers"] == 2 * SAMPLED * (3 * LINEARS + ATTENTION)
    assert passes["quantized tokens"] == SAMPLED * (LINEARS + ATTENTION)
    assert passes["training"] == SAMPLED * 10 * (LINEARS * 13 // 4 + ATTENTION * 7 // 2)
    without = plan(PLANNED["ptq"]).passes()["training"]
    assert passes["training"] - without == SAMPLED * 10 * LINEARS // 4
    blocks = 150 * 2 * (4 * LINEARS + ATTENTION * 9 // 2)
    assert blocks < passes["tuning"] < 1.01 * blocks


def test_gram_matrices_and_rounding_by_hand():
    """A double block waits for qkv before its projection, for that too before fc1, and for fc1 before fc2."""
    passes = plan(PLANNED["gptq"]).passes()
    linears, attention = 24 * WIDTH**2 * TOKENS, 4 * WIDTH * TOKENS**2
    qkv, proj, fc1, linear1 = (2 * n * WIDTH**2 * TOKENS for n in (3, 1, 4, 7))
    assert qkv + proj + 2 * fc1 == linears
    double = qkv + (qkv + proj) + (qkv + proj + fc1) + 3 * attention
    single = linear1 + attention
    # X^T X of three inputs of the model's width and one of the MLP's; of a single block's layers two share one input.
    gram_double = 2 * TOKENS * (3 * WIDTH**2 + MLP**2)
    gram_single = 2 * TOKENS * (2 * WIDTH**2 + MLP**2)
    forward = SAMPLED * (20 * double + 40 * single)
    grams = SAMPLED * (20 * gram_double + 40 * gram_single)
    assert passes["Gram matrices"] == pytest.approx(forward + grams, rel=1e-12)
    narrow, wide = 2 * WIDTH**3, 2 * MLP**3
    stream = 3 * narrow + wide + 2 * WIDTH**2 * (3 + 1 + 4) * WIDTH + 2 * MLP**2 * WIDTH
    one = 2 * narrow + wide + 2 * WIDTH**2 * (7 + 1) * WIDTH + 2 * MLP**2 * WIDTH
    assert passes["rounding"] == 40 * stream + 40 * one


def test_a_method_without_training_has_no_training():
    trained, plain = plan(PLANNED["msad"]).passes(), plan(PLANNED["gptq"]).passes()
    assert trained.keys() - plain.keys() == {"training"}
    assert plan(PLANNED["gptq"]).steps_a_block == 0


@pytest.mark.parametrize(
    ("samples", "captions"), [(30, None), (30, 40), (30, 15), (30, 20), (20, 5), (2, 2)]
)
def test_a_caption_is_sampled_up_to_its_last_sample(samples, captions):
    """The plan's mean beside the samples of five hundred calibrations; tuning sees all steps."""
    plain = plan(PLANNED["gptq"], samples=samples, captions=captions)
    videos = min(samples, captions or samples)
    drawn = [sampled_steps(samples, 50, seed) for seed in range(500)]
    last = [max(steps[video::videos]) for steps in drawn for video in range(videos)]
    # A step that is kept is not evaluated itself: half a step less than the places' mean.
    assert plain.evaluations == pytest.approx(
        videos * (np.mean(last) + 0.5), abs=1 + 0.02 * 50 * videos
    )
    tuned = plan(TUNED, samples=samples, captions=captions)
    assert tuned.evaluations == 50 * videos


@pytest.mark.parametrize(("name", "peak"), [("v5e-1", 197e12), ("v6e-1", 918e12), ("h100", 989e12)])
def test_hours_are_operations_at_a_share_of_the_peak(name, peak):
    passes = plan(TUNED).passes()
    counted = sum(passes.values()) + (FLOAT32 - 1) * passes["rounding"]
    hours = plan(TUNED).hours(Device.load(name))
    assert hours == pytest.approx(counted / (SHARE_OF_PEAK * peak) / 3600)


def test_files_by_hand():
    """Block inputs and outputs of both models; latents of 16 channels before and after all steps, float32."""
    inputs = 4 * SAMPLED * TOKENS * WIDTH * 2
    weights = Weights.count(DIT, Recipe.load("w4a8"))
    assert plan(PLANNED["gptq"]).disk(weights) == {"block_inputs_and_outputs": inputs}
    latents = 16 * (61 // 4 + 1) * (544 // 8) * (960 // 8)
    found = plan(TUNED).disk(weights)
    assert found["trajectories"] == SAMPLED * 51 * latents * 4
    assert found["rounded_transformer"] == 6_684_531_936
    # Each with two moments of Adam.
    groups = weights.by_group
    assert found["tuning_state"] == 3 * (groups["scales"] + groups["biases"])


def test_the_default_costs_what_is_promised(capsys):
    """Hours on an H100, sampling included, and everything on the device of one v5e."""
    report = plan_json(capsys)
    hours = {row["method"]: row["hours_estimate"]["h100"] for row in report["methods"]}
    assert list(hours) == ["gptq", "msad", "tuned"]
    assert hours["gptq"] <= 0.6
    assert hours["gptq"] < hours["msad"] < hours["tuned"] <= 3.2
    (v5e,) = (row for row in report["devices"] if row["device"] == "v5e-1")
    assert v5e["bytes_estimate"] <= 15.5e9
    # The float model itself does not fit: 25.6 GB.
    assert not v5e["sampling_fits_estimate"]


def test_options_choose_a_method(capsys):
    report = plan_json(capsys, "--method", "ptq", "--tune-steps", 300, "--captions", 5)
    assert [row["method"] for row in report["methods"]] == ["ptq"]
    assert (report["tune_steps"], report["captions"]) == (300, 5)
    shorter = plan_json(capsys, "--tune-steps", 0)
    assert [row["method"] for row in shorter["methods"]] == ["gptq", "msad", "tuned"]
    assert not shorter["tune_steps"]
    assert "tuning" not in shorter["stages"]


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(InputError, match="captions 0"):
        plan(TUNED, captions=0)


def test_block_inputs_lie_where_there_is_room():
    """Sixty inputs of a block for each of the two moments of a step."""
    model = PlannedModel.find("hunyuan-13b")
    room = calibration_stages(model, SIZE, 80 * 10**9)["tuning"]
    assert room["block_inputs"] == 2 * 60 * TOKENS * WIDTH * 2
    whole = sum(room.values())
    assert inputs_fit(model, SIZE, whole)
    assert not inputs_fit(model, SIZE, whole - 1)
    assert "block_inputs" not in calibration_stages(model, SIZE, whole - 1)["tuning"]


def test_stages_by_hand():
    model = PlannedModel.find("hunyuan-13b")
    found = calibration_stages(model, SIZE, 16 * 10**9)
    block, linears, token = 339_831_296, 24 * WIDTH**2, 2 * WIDTH * TOKENS
    assert found["training"] == {
        "block_weights": 2 * block,
        "activations": WIDTHS["training"] * token,
        **dict.fromkeys(
            ("merged_weights", "fake_quantized_weights", "weight_gradients"), 4 * linears
        ),
    }
    # Of both streams: what there is, and what a sample adds.
    assert found["Gram matrices"]["gram_matrices"] == 4 * 4 * MLP**2
    assert found["tuning"]["packed_weights"] == 6_684_531_936
    assert "training" not in calibration_stages(model, SIZE, 16 * 10**9, trained=False)
