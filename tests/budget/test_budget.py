"""Plans: bytes tensor by tensor, operations against a count by hand, estimates against their formulas, and the command line."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from qsjax.budget import (
    Device,
    PlannedModel,
    Size,
    StepFlops,
    Weights,
    activation_bytes,
    modulation_table_bytes,
    plan_memory,
    sampling_bytes,
)
from qsjax.budget.report import make_report
from qsjax.budget.sampling import step_bytes
from qsjax.cli import main
from qsjax.config import to_mapping
from qsjax.dit import DiT, DiTConfig
from qsjax.errors import InputError
from qsjax.quant import Override, Precision, Recipe
from qsjax.vae.config import VAEConfig

HUNYUAN = "hunyuan-video-13b"
DIT = DiTConfig.preset(HUNYUAN)
# frames, height, width: video tokens, and the share of the blocks' linears at dense attention and at density 0.15.
SIZES = {
    (129, 720, 1280): (118_800, 0.13, 0.51),
    (129, 544, 960): (67_320, 0.21, 0.65),
    (61, 544, 960): (32_640, 0.36, 0.79),
    (61, 480, 832): (24_960, 0.42, 0.83),
}


def weights(recipe):
    return Weights.count(DIT, Recipe.load(recipe))


def size_of(frames, height, width):
    return Size.of(DIT, VAEConfig(), frames=frames, height=height, width=width)


def plan_json(capsys, *arguments):
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["plan", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_bf16_is_two_bytes_a_parameter():
    counted = weights("bf16")
    assert counted.total == 2 * 12_821_012_544
    assert counted.by_group == {
        **dict.fromkeys(("integers", "scales", "biases", "transforms"), 0),
        "bf16": counted.total,
    }


def test_recipes_keep_their_promises():
    """The paper's 3.68 times is 6.969e9 bytes; with the refiner in 8 bits less."""
    floating, w4a8, w6a6 = (weights(name).total for name in ("bf16", "w4a8", "w6a6"))
    assert w4a8 == 6_684_531_936
    assert w4a8 <= 6.70e9 <= 7.00e9
    assert floating / w4a8 >= 3.68
    assert floating / w6a6 >= 2.5


@pytest.mark.parametrize("recipe", ["bf16", "w4a8", "w4a16", "w6a6", "w8a8"])
def test_breakdowns_sum_to_the_total(recipe):
    counted = weights(recipe)
    assert sum(counted.by_group.values()) == sum(counted.by_part.values()) == counted.total
    assert counted.resident == counted.total - counted.by_part["modulation"]


def test_w4a8_by_hand():
    """Half a byte for every weight of blocks and modulation, one for the refiner's; float32 scale and bias an output."""
    counted = weights("w4a8")
    width, blocks, modulation = 3072, 9_059_696_640, (40 * 6 + 40 * 3) * 3072**2
    refiner = 256 * width + 2 * width**2 + 2 * 4096 * width + 2 * 14 * width**2
    assert counted.by_group["integers"] == (blocks + modulation) // 2 + refiner
    outputs = 20 * 2 * (3 + 1 + 4 + 1 + 6) * width  # qkv, proj, fc1, fc2, modulation
    outputs += 40 * (7 + 1 + 3) * width + (4 + 1) * width + 2 * (3 + 1 + 4 + 1 + 2) * width
    second_halves = 40 * width  # linear2's two inputs have scales each and one bias
    assert counted.by_group["scales"] == 4 * (outputs + second_halves)
    assert counted.by_group["biases"] == 4 * outputs
    rotations = 4 * 128**2 * (20 * 2 * 3 + 40 * 2)
    smoothing, clips = 4 * 4 * width * (20 * 2 + 40), 4 * (20 * 8 + 40 * 3)
    assert counted.by_group["transforms"] == rotations + smoothing + clips
    assert counted.by_part["modulation"] == modulation // 2 + 2 * 4 * modulation // width


def test_overrides_are_counted_and_must_match():
    floating = Override(pattern="double_blocks.txt.*", precision=Precision(weights=16))
    w4a8 = Recipe.load("w4a8")
    given = replace(w4a8, overrides=(floating,))
    # The text stream of a double block, with its modulation: from half a byte a weight to two; float32 biases (and scales)
    # become bfloat16 ones (and nothing), as do smoothing, rotations and clips.
    outputs, transforms = (3 + 1 + 4 + 1 + 6) * 3072, 3 * 128**2 + 4 * 3072 + 4
    one = 1.5 * 18 * 3072**2 - (2 + 4) * outputs - 4 * transforms
    assert Weights.count(DIT, given).total - weights("w4a8").total == 20 * one
    wrong = replace(w4a8, overrides=(replace(floating, pattern="triple.*"),))
    with pytest.raises(InputError, match="matches no layer"):
        Weights.count(DIT, wrong)


def test_modulation_table_is_what_the_model_makes():
    model = PlannedModel.find("tiny")
    dit = nnx.eval_shape(lambda: DiT(model.dit, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(dit)
    steps = jax.ShapeDtypeStruct((7,), jnp.float32)
    pooled = jax.ShapeDtypeStruct((1, model.dit.pooled_dim), jnp.bfloat16)
    guidance = jax.ShapeDtypeStruct((1,), jnp.float32)

    def table(state, *given):
        return nnx.merge(graph, state).modulation(*given)

    made = jax.eval_shape(table, state, steps, pooled, guidance)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made))
    assert modulation_table_bytes(model.dit, 7) == held
    assert modulation_table_bytes(DIT, 50) == 50 * 362 * 3072 * 2


@pytest.mark.parametrize("pixels", SIZES)
def test_tokens_and_shares_of_the_design(pixels):
    tokens, dense, sparse = SIZES[pixels]
    size = size_of(*pixels)
    assert (size.video_tokens, size.tokens) == (tokens, tokens + 256)
    step = StepFlops.count(DIT, size)
    assert round(step.linear_share(), 2) == dense
    assert round(step.linear_share(0.15), 2) == sparse


def test_operations_by_hand():
    step, width, length = StepFlops.count(DIT, size_of(129, 720, 1280)), 3072, 119_056
    assert step.linears == 60 * 24 * width**2 * length
    assert step.attention == 60 * 4 * width * length**2
    modulation = 2 * width * (20 * 12 + 40 * 3 + 2) * width
    embedders = 2 * width * (256 + 768 + 256 + 3 * width)
    refiner = 2 * width * (256 + 4096 + 2 * width)  # its own embedders, one row
    refiner += 2 * 256 * width * 4096 + 2 * 2 * width * 2 * width
    refiner += 2 * (256 * 24 * width**2 + 4 * width * 256**2)
    ends = 2 * 118_800 * width * (64 + 64)
    assert step.rest == modulation + embedders + refiner + ends
    assert step.total() == step.linears + step.attention + step.rest
    assert step.total() / 1e12 == pytest.approx(12068.6, abs=0.05)
    assert step.total(0.15) == step.total() - step.attention + round(0.15 * step.attention)


def test_attention_equals_linears_at_six_widths():
    size = Size(frames=1, height=1, width=1, video_tokens=6 * 3072 - 256, text_tokens=256)
    step = StepFlops.count(DIT, size)
    assert step.linears == step.attention


def test_a_block_holds_fifteen_widths_a_token():
    size = size_of(61, 480, 832)
    assert activation_bytes(DIT, size) == 15 * 3072 * 2 * 25_216 + 24_960 * 128 * 4


@pytest.mark.parametrize(
    ("kinds", "widths", "wide"),
    [(("dense",), 16, 48 * 3072**2), (("dense", "refresh", "sparse"), 26, 0)],
)
def test_the_widest_step_counts(kinds, widths, wide):
    size = size_of(61, 480, 832)
    taken = sampling_bytes(DIT, weights("w4a8").resident, size, 50, kinds)
    assert taken["activations"] == widths * 3072 * 2 * 25_216 + 24_960 * 128 * 4 + wide
    assert taken["resident_weights"] == weights("w4a8").resident


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_an_adaptive_step_takes_what_the_larger_of_its_parts_does(backend):
    size = size_of(61, 480, 832)
    parts = [step_bytes(DIT, size, kind, backend) for kind in ("refresh", "sparse")]
    assert step_bytes(DIT, size, "adaptive", backend) == max(parts) != min(parts)


def test_devices_are_ordered_and_have_peaks():
    devices = Device.known()
    assert [device.name for device in devices] == ["v5e-1", "v5e-8", "v6e-1", "v6e-8", "h100", "h200"]  # fmt: skip
    assert {device.name: device.chips for device in devices if device.chips > 1} == {"v5e-8": 8, "v6e-8": 8}  # fmt: skip
    assert all(device.peaks.bfloat16_flops for device in devices)
    with pytest.raises(InputError, match="did you mean 'v5p'"):
        Device(name="x", target="v5", memory_bytes=1)
    with pytest.raises(InputError, match="memory_bytes 0"):
        Device(name="x", target="v5e", memory_bytes=0)


def test_true_guidance_evaluates_twice():
    model = PlannedModel.find("tiny")
    guided = replace(model, settings=replace(model.settings, true_cfg=3.0))
    one, two = (make_report(m, m.settings, Device.known()) for m in (model, guided))
    for key in ("flops_all_steps", "flops_per_step"):
        times = 2 if key == "flops_all_steps" else 1
        assert two[key]["total"] == times * one[key]["total"]
    assert two["modulation_table_bytes"] == 2 * one["modulation_table_bytes"]


def test_command_prints_json(capsys):
    report = plan_json(capsys, "--model", "hunyuan-13b", "--weights", "w4a8")
    assert report["model"] == HUNYUAN
    assert report["weight_bytes"] == 6_684_531_936
    assert report["times_smaller"] == 3.84
    for breakdown in ("weight_bytes_by_group", "weight_bytes_by_part"):
        assert sum(report[breakdown].values()) == report["weight_bytes"]
    assert report["size"]["tokens"] == 119_056
    step = report["flops_per_step"]
    assert step["total"] == step["linears"] + step["attention"] + step["rest"]
    assert report["flops_all_steps"]["total"] == 50 * step["total"]
    calibration = report["calibration"]
    assert calibration["size"]["tokens"] == 10_496
    assert calibration["steps_a_block"] == 300
    for row in [*report["sampling"]["devices"], *calibration["devices"]]:
        assert row["fits_estimate"] == (row["bytes_estimate"] <= row["memory_bytes"])


def test_command_prints_tables_that_name_their_estimates(capsys):
    assert main(["plan"]) == 0
    printed = capsys.readouterr().out
    assert "6,684,531,936 bytes, 3.84 times smaller" in printed
    assert "linear layers are 13 % of a dense step, 51 % at density 0.15" in printed
    assert printed.count("needed (estimate)") == 4
    assert "hours on v5e-1 (estimate)" in printed


def test_tiny_has_its_own_vae_and_settings(capsys):
    report = plan_json(capsys, "--model", "tiny", "--text-tokens", 64, "--density", 1)
    assert report["size"] == {
        **{"frames": 33, "height": 64, "width": 64},
        **{"video_tokens": 9 * 8 * 8, "text_tokens": 64, "tokens": 640},
    }
    assert report["steps"] == 30
    assert report["flops_per_step"]["attention"] == 9 * 4 * 128 * 640**2
    assert report["flops_per_step"]["total_at_density"] == report["flops_per_step"]["total"]
    assert report["calibration"]["size"] == report["size"]


def test_options_change_the_plan(capsys, tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text('model = "tiny"\nrecipe = "w8a8"\nframes = 17\ncalibration-size = "5x32x48"\n')
    report = plan_json(capsys, "--config", file, "--samples", 4, "--epochs", 3, "--steps", 2)
    assert (report["recipe"], report["steps"]) == ("w8a8", 2)
    assert report["size"]["video_tokens"] == 5 * 8 * 8
    calibration = report["calibration"]
    assert calibration["size"]["video_tokens"] == 2 * 4 * 6
    assert calibration["steps_a_block"] == 12


def checkpoint(folder, **dit):
    model = PlannedModel.find("tiny")
    items = {"ends": {"leaf": {"shape": [1], "dtype": "float32", "sha256": "0" * 64}}}
    component = {"config": to_mapping(model.dit), "items": items, **dit}
    data = {
        "format_version": 1,
        "components": {"dit": component, "vae": {"config": to_mapping(model.vae), "items": items}},
        "generation": to_mapping(model.settings),
    }
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


def test_a_float_checkpoint_is_planned_like_its_preset(capsys, tmp_path):
    report = plan_json(capsys, "--model", checkpoint(tmp_path))
    tiny = plan_json(capsys, "--model", "tiny")
    assert report.pop("model") == str(tmp_path)
    del tiny["model"]
    # A transformer alone has no text encoders.
    stages, others = report["sampling"].pop("stages"), tiny["sampling"].pop("stages")
    del others["text encoders"]
    assert stages == others
    assert report == tiny


def test_a_quantized_checkpoint_has_its_own_recipe(capsys, tmp_path):
    folder = checkpoint(tmp_path, recipe=to_mapping(Recipe.load("w6a6")), clipped=True)
    report = plan_json(capsys, "--model", folder)
    assert report["recipe"] == "w6a6"
    assert report == plan_json(capsys, "--model", folder, "--recipe", "w6a6")
    message = refused(capsys, "--model", folder, "--weights", "w4a8")
    unclipped = checkpoint(tmp_path, recipe=to_mapping(Recipe.load("w6a6")), clipped=False)
    # One float32 clip for every quantized input of 3 double and 6 single blocks.
    fewer = report["weight_bytes"] - plan_json(capsys, "--model", unclipped)["weight_bytes"]
    assert fewer == 4 * (3 * 8 + 6 * 3)
    assert "already quantized by a recipe of its own, w6a6" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "hunyuan-13"], "did you mean 'hunyuan-13b'"),
        (["--weights", "w4a9"], "did you mean 'w4a8'"),
        (["--recipe", "w4a8", "--weights", "w6a6"], "leave one of them out"),
        (["--frames", "128"], "nearest valid number is 129"),
        (["--height", "721"], "nearest valid value is 720"),
        (["--steps", "0"], "steps"),
        (["--method", "gtpq"], "did you mean 'gptq'"),
        (["--calibration-size", "544p"], "as in 61x544x960"),
        (["--calibration-size", "62x544x960"], "nearest valid number is 61"),
    ],
)
def test_bad_input_is_refused(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.0}, "above 0 and at most 1"),
        ({"density": 1.5}, "above 0 and at most 1"),
        ({"text_tokens": 0}, "at least 1"),
        ({"samples": 0}, "at least 1"),
        ({"captions": 0}, "at least 1"),
        ({"tune_steps": -1}, "not be negative"),
    ],
)
def test_bad_numbers_are_refused_in_python_too(arguments, message):
    with pytest.raises(InputError, match=message):
        plan_memory("hunyuan-13b", **arguments)


def test_a_folder_that_is_no_checkpoint_is_refused(capsys, tmp_path):
    assert "no manifest.json" in refused(capsys, "--model", tmp_path)
