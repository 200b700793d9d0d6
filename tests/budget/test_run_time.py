"""The run's time in a plan: floors times stored overheads give back what the compiler's estimate was."""

import json
from dataclasses import replace

import pytest

from pallas_kernels.targets import TARGETS
from qsjax.bench.overheads import store, table
from qsjax.budget import overheads
from qsjax.budget.devices import Device
from qsjax.budget.models import PlannedModel
from qsjax.budget.overheads import BFLOAT16, Decoding, Overheads
from qsjax.budget.parts import HOST_RATE, floors, pass_seconds
from qsjax.budget.run_time import decoding_seconds, decoding_tiles, run_time, step_seconds
from qsjax.budget.size import Size
from qsjax.cli import main
from qsjax.errors import InputError
from qsjax.residual import Residual
from qsjax.sample import SamplingPlan, SparsePlan
from qsjax.sparse import Sparsity

MODEL = PlannedModel.find("hunyuan-13b", "w4a8")
V5E = Device.load("v5e-1")
PLAN = SamplingPlan(
    steps=10, sparse=SparsePlan(sparsity=Sparsity(density=0.15, block_kv=128), dense_steps=3, interval=3)
)  # fmt: skip


def size(frames, height, width):
    return Size.of(MODEL.dit, MODEL.vae, frames=frames, height=height, width=width)


def planned(model=MODEL, plan=PLAN, device=V5E, video=(33, 320, 512)):
    latents = model.vae.latent_shape(*video)
    return run_time(model, plan, size(*video), latents, device)


@pytest.mark.parametrize("target", sorted(Overheads.known()))
def test_the_tables_own_size_gives_back_the_estimate(target):
    known = Overheads.known()[target]
    device = Device(name="chip", target=target, memory_bytes=1)
    assert {"dense", BFLOAT16} <= set(known.seconds) <= {"dense", "refresh", "sparse", BFLOAT16}
    for kind, seconds in known.seconds.items():
        found = step_seconds(
            known, MODEL, size(*known.size), device, kind,
            density=known.executed_density if kind == "sparse" else 1.0,
            integers=kind != BFLOAT16,
            cached=known.cache_bytes / 60 if kind in ("refresh", "sparse") else 0.0,
        )  # fmt: skip
        assert found == pytest.approx(seconds, rel=1e-3)


def report(tokens=1000, cached=60_000_000):
    """Blocks that take twice their floors, and two passes of what has none."""
    chip = TARGETS["v5e"]
    one_pass = pass_seconds(MODEL.dit, chip, tokens)
    kinds = {}
    for kind in ("dense", "refresh", "sparse", BFLOAT16):
        share = 0.2 if kind == "sparse" else 1.0
        least = {
            block: floors(
                MODEL.dit, chip, tokens=tokens, block=block, pairs=share * tokens**2,
                integers=kind != BFLOAT16, cached=cached / 60 if kind in ("refresh", "sparse") else 0.0,
            )
            for block in ("double", "single")
        }  # fmt: skip
        blocks = {
            block: {part: 2 * seconds for part, seconds in parts.items()} | {"rest": 2 * one_pass}
            for block, parts in least.items()
        }
        total = sum(
            depth * sum(blocks[block].values()) for block, depth in (("double", 20), ("single", 40))
        )
        kinds[kind] = {
            "blocks": {**blocks, "ends": {"rest": 5 * one_pass}},
            "floors": least,
            "seconds": total + 5 * one_pass,
            "doubts": [],
        }
    return {
        "target": "v5e", "kinds": kinds, "pass_seconds": one_pass, "weights": "w4a8", "mask": "svg",
        "size": {"frames": 33, "height": 320, "width": 512}, "versions": {"libtpu": "0.0.52"},
        "executed_density": 0.2, "cache_bytes": cached, "hidden_size": 3072, "heads": 24,
        "decoding": {"tile": (16, 20, 20), "seconds": 0.5, "cpu_seconds": 99.9, "libtpu": "0.0.52"},
    }  # fmt: skip


def test_a_report_becomes_a_table(tmp_path, monkeypatch):
    file, source = tmp_path / "overheads.json", tmp_path / "report.json"
    source.write_text(json.dumps(report()))
    store([source], file)
    monkeypatch.setattr(overheads, "FILE", file)
    (known,) = Overheads.known().values()
    assert known.kinds["sparse"]["double"] == {
        "attention": 2, "products": 2, "token quantization": 2, "RoPE and norms": 2, "cache": 2, "rest": 2,
    }  # fmt: skip
    assert known.kinds["dense"]["ends"] == {"rest": 5}
    assert known.decoding == Decoding(
        tile=(16, 20, 20), seconds=0.5, cpu_seconds=100.0, libtpu="0.0.52"
    )
    # At any size a step takes twice its floors and some passes.
    small = Size(frames=0, height=0, width=0, video_tokens=700, text_tokens=300)
    for kind, row in report()["kinds"].items():
        cached = 1e6 if kind in ("refresh", "sparse") else 0.0
        share = 0.2 if kind == "sparse" else 1.0
        found = step_seconds(
            known, MODEL, small, V5E, kind, density=share, integers=kind != BFLOAT16, cached=cached
        )
        assert found == pytest.approx(row["seconds"], rel=1e-3)


def test_a_report_with_gaps(tmp_path, monkeypatch):
    broken = {**report()["kinds"], "refresh": {"failure": "no estimate: SIGABRT"}}
    assert set(table({**report(), "kinds": broken})["kinds"]) == {"dense", "sparse", BFLOAT16}
    with pytest.raises(InputError, match="bf16 dense steps of v5e have no estimate"):
        table({**report(), "kinds": {"dense": broken["dense"], BFLOAT16: broken["refresh"]}})
    doubtful = report()
    doubtful["kinds"]["sparse"]["doubts"] = ["qkv/q was not profiled"]
    with pytest.raises(InputError, match="not fully estimated \\(qkv/q was not profiled"):
        table(doubtful)
    # A run that needs what is left out has no time; others have.
    file, source = tmp_path / "overheads.json", tmp_path / "report.json"
    source.write_text(json.dumps({**report(), "kinds": broken}))
    store([source], file)
    monkeypatch.setattr(overheads, "FILE", file)
    assert planned() == {"missing": "no estimate is stored for refresh steps"}
    assert planned(plan=SamplingPlan(steps=10))["seconds"] > 0


def test_a_run_is_the_sum_of_its_steps_and_stages():
    found = planned()
    counts = {kind: PLAN.kinds.count(kind) for kind in PLAN.kinds}
    steps = {kind: counts[kind] * seconds for kind, seconds in found["step_seconds"].items()}
    assert found["steps_seconds"] == pytest.approx(steps)
    stages = found["text_seconds"] + found["decoding_seconds"]
    assert found["seconds"] == pytest.approx(sum(steps.values()) + stages)
    assert found["times_as_fast"] == pytest.approx(found["bf16_dense_seconds"] / found["seconds"])
    twice = planned(plan=replace(PLAN, steps=20))
    assert twice["bf16_dense_seconds"] - stages == pytest.approx(
        2 * (found["bf16_dense_seconds"] - stages)
    )
    guided = planned(plan=replace(PLAN, true_cfg=6.0))
    assert guided["steps_seconds"]["sparse"] == pytest.approx(2 * steps["sparse"])


def test_a_run_in_bfloat16_that_is_dense_is_the_one_to_compare_with():
    floating = PlannedModel.find("hunyuan-13b", "bf16")
    assert planned(floating, SamplingPlan(steps=10))["times_as_fast"] == pytest.approx(1)
    # A sparse one computes as many products.
    assert planned(floating)["times_as_fast"] < planned()["times_as_fast"]


def test_eight_chips_share_all_but_the_text():
    one, eight = planned(), planned(device=Device.load("v5e-8"))
    for kind, seconds in one["step_seconds"].items():
        assert seconds / 8 < eight["step_seconds"][kind] < seconds / 5


def test_a_cache_on_the_host_is_transferred():
    there = replace(PLAN, sparse=replace(PLAN.sparse, residual=Residual(place="host")))
    here = replace(PLAN, sparse=replace(PLAN.sparse, residual=Residual()))
    device, host = planned(plan=here), planned(plan=there)
    assert host["step_seconds"]["dense"] == device["step_seconds"]["dense"]
    extra = {
        kind: host["step_seconds"][kind] - device["step_seconds"][kind]
        for kind in ("refresh", "sparse")
    }
    assert extra["refresh"] == pytest.approx(extra["sparse"])
    values = 60 * size(33, 320, 512).video_tokens * 3072 * 2  # bfloat16
    assert values < extra["sparse"] * HOST_RATE < 1.1 * values


def test_tiles_are_decoded_one_after_the_other_and_by_several_chips_in_turns():
    latents = MODEL.vae.latent_shape(61, 480, 832)
    assert decoding_tiles(MODEL.vae, V5E.peaks, latents) == {(16, 26, 32): 12}
    stored = Decoding(tile=(16, 26, 16), seconds=0.25, cpu_seconds=1.0, libtpu="0.0.52")
    assert decoding_seconds(stored, MODEL.vae, V5E, latents) == pytest.approx(12 * 0.5)
    eight = Device.load("v5e-8")
    assert decoding_seconds(stored, MODEL.vae, eight, latents) == pytest.approx(2 * 0.5)


def test_the_plan_says_what_is_estimated_and_what_is_not(capsys):
    arguments = ["plan", "--recipe", "quantsparse-w4a8-d15", "--frames", "33", "--height", "320"]
    arguments += ["--width", "512"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "the run's time, an estimate (libtpu" in out
    assert "h100, h200: no estimates are stored for such a chip" in out
    assert main([*arguments, "--device", "v5e-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["run_time_estimate"]["v5e-1"]
    assert found["seconds"] > sum(found["steps_seconds"].values())
    assert main(["plan", "--model", "tiny"]) == 0
    assert "stored for blocks of 3072 channels and 24 heads" in capsys.readouterr().out
