"""Stages on the device one after the other, and what is said of a run that does not fit."""

from dataclasses import replace

import pytest

import qsjax
from qsjax import opened
from qsjax.budget import PlannedModel, Weights
from qsjax.budget.fit import DOUBT, advice, require_room
from qsjax.budget.run import Run
from qsjax.cli import main
from qsjax.errors import InputError
from qsjax.settings import SamplingRecipe

GB = 10**9


@pytest.fixture(scope="module")
def run():
    """HunyuanVideo-13B in W4A8 with 15 % of attention, at 720p and 129 frames."""
    model = PlannedModel.find("hunyuan-13b", "w4a8")
    sparse = SamplingRecipe.load("quantsparse-w4a8-d15").sparse
    weights = Weights.count(model.dit, model.recipe)
    return Run(model=model, weights=weights, settings=replace(model.settings, sparse=sparse))


def totals(run):
    return {stage.name: stage.total for stage in run.stages()}


def test_the_stages_of_hunyuan_video(run):
    found = totals(run)
    assert list(found) == ["text encoders", "transformer", "autoencoder"]
    # 6.54e9 parameters of the language model's thirty used layers, whose embeddings stay on the host; 0.12e9 of the CLIP.
    assert found["text encoders"] == pytest.approx(2 * 6.67e9, rel=0.01)
    small = totals(replace(run, text_storage="int8"))
    assert 0.5 < small["text encoders"] / found["text encoders"] < 0.6
    assert small["transformer"] == found["transformer"]
    assert "text encoders" not in totals(replace(run, encodes=False))


def test_each_part_is_there_where_it_is_asked_for(run):
    (_, transformer, _), held = run.stages(), replace(run, modulation="resident").stages()
    assert held[1].parts["modulation_weights"] == run.weights.by_part["modulation"]
    assert "modulation_weights" not in transformer.parts
    residual = replace(run.settings.sparse.residual, place="host")
    hosted = replace(run, settings=replace(run.settings, sparse=replace(run.settings.sparse, residual=residual)))  # fmt: skip
    assert "lists_and_residual_cache" not in hosted.stages()[1].parts
    assert transformer.parts["lists_and_residual_cache"] > 60 * 118_800 * 3072
    cached = transformer.parts["lists_and_residual_cache"]
    assert totals(hosted)["transformer"] == transformer.total - cached
    dense = replace(run, settings=replace(run.settings, sparse=None))
    assert totals(dense)["transformer"] < totals(hosted)["transformer"]


def test_eight_chips_share_tokens_and_cache(run):
    one, eight = (stage.stages()[1].parts for stage in (run, replace(run, chips=8)))
    assert one["resident_weights"] == eight["resident_weights"]
    assert eight["lists_and_residual_cache"] == -(-one["lists_and_residual_cache"] // 8)
    assert 1 / 8 < eight["activations"] / one["activations"] < 1 / 7
    assert run.stages()[2] == replace(run, chips=8).stages()[2]


def test_eight_chips_may_share_the_weights(run):
    one, eight = (
        stage.stages()[1].parts for stage in (run, replace(run, chips=8, shard_weights=True))
    )
    # Matrices, of half a byte a value; scales, biases, transforms and what is not of the blocks is everyone's.
    matrices = (20 * 24 + 40 * 12) * 3072**2 // 2
    assert run.weights.matrices["blocks"] == matrices
    assert one["resident_weights"] - eight["resident_weights"] == matrices - matrices // 8
    assert replace(run, shard_weights=True).stages() == run.stages()  # nobody to share with
    held = replace(run, chips=8, shard_weights=True, modulation="resident").stages()[1].parts
    assert held["modulation_weights"] < run.weights.by_part["modulation"] / 7


def test_sharing_is_proposed_where_it_is_what_fits():
    model = PlannedModel.find("hunyuan-13b", "bf16")
    weights = Weights.count(model.dit, model.recipe)
    run = Run(model=model, weights=weights, settings=model.settings, encodes=False, chips=8)
    assert "`shard_weights=True`" in advice(run, 16 * GB)
    assert "`shard_weights=True`" not in advice(replace(run, chips=1), 16 * GB)


def test_a_tile_is_no_larger_than_the_video(run):
    tiny = replace(run, settings=replace(run.settings, frames=5, height=64, width=64))
    parts = {stage.name: stage.parts for stage in tiny.stages()}["autoencoder"]
    whole = {stage.name: stage.parts for stage in run.stages()}["autoencoder"]
    assert parts["a_tile"] * 65 * 256 * 256 == whole["a_tile"] * 5 * 64 * 64
    assert parts["autoencoder_weights"] == whole["autoencoder_weights"]


@pytest.mark.parametrize(("backend", "room"), [("tpu", 40), ("gpu", 50)])
def test_a_run_that_does_not_fit_is_refused_with_changes_that_would_do(run, backend, room):
    run = replace(run, backend=backend)
    with pytest.raises(InputError) as caught:
        require_room(run, room * GB, where="this chip")
    message = str(caught.value)
    assert f"does not fit this chip with {room}.0 GB: the stage of the transformer" in message
    assert ("`residual.place='host'`" in message) == (backend == "tpu")
    for change in ("residual.store='int4'", "residual.policy='none'", "frames=61, height=720"):
        assert change in message
    assert "residual.store='int8'" not in message  # it has that


def test_advice_names_the_largest_video_that_fits(run):
    found = advice(run, 16 * GB)
    videos = [text for text in found if text.startswith("a smaller video")]
    assert len(videos) == 1
    with pytest.raises(InputError, match="no single change"):
        require_room(run, GB, where="this chip")


def test_text_encoders_may_be_what_does_not_fit(run):
    small = replace(run, settings=replace(run.settings, frames=5, height=64, width=64))
    assert small.largest().name == "text encoders"
    assert advice(small, 10 * GB)[:2] == [
        "`text_storage='int8'`",
        "a prompt encoded elsewhere (`save_prompts`, `load_prompts`)",
    ]


def test_what_is_within_the_doubt_of_the_estimate_is_tried(run):
    run = replace(run, settings=replace(run.settings, frames=5, height=64, width=64))
    needed = run.largest().total
    require_room(run, needed, where="here")
    require_room(run, int((1 - DOUBT) * needed) + 1, where="here")
    with pytest.raises(InputError):
        require_room(run, int((1 - DOUBT) * needed) - 1, where="here")


def test_sampling_is_refused_before_anything_is_loaded(
    tiny_checkpoint, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(opened, "device_room", lambda: 10**6)
    pipeline = qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)
    with pytest.raises(InputError, match="does not fit this cpu"):
        pipeline("a red circle moves left", frames=5, height=16, width=24, steps=2)
    assert pipeline.timings == {}
    out = tmp_path / "out.mp4"
    assert main(["sample", "--model", str(tiny_checkpoint), "--prompt", "a red circle", "--out", str(out)]) == 2  # fmt: skip
    assert "does not fit this cpu with 0.0 GB" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(opened, "device_room", lambda: 10**10)
    # What is looked at next.
    with pytest.raises(InputError, match="the prompt is empty"):
        pipeline(" ", frames=5, height=16, width=24, steps=2)


def test_a_plan_names_changes_as_arguments_and_its_command_as_options(capsys):
    plan = qsjax.plan_memory(device="v5e-1", text_storage="int8")
    (row,) = plan["sampling"]["devices"]
    (change,) = row["fits_with"]
    assert change.startswith("a smaller video (`frames=61, height=")
    assert main(["plan", "--device", "v5e-1", "--text-storage", "int8"]) == 0
    text = capsys.readouterr().out
    assert "a smaller video (--frames 61 --height " in text
    assert "`" not in text
