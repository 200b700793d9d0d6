"""Steps by kind: density as executed, bytes as allocated, and whole steps compiled for a chip that is not here."""

import json
from dataclasses import replace
from functools import cache as remember

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import targets
from pallas_kernels.block_sparse_attention import gpu as attention_gpu
from pallas_kernels.block_sparse_attention import tpu as attention_tpu
from pallas_kernels.deviceless import missing
from pallas_kernels.targets import TARGETS
from qsjax.budget.compiled import compile_steps
from qsjax.budget.steps import describe, executed_density
from qsjax.budget.weights import Weights
from qsjax.cli import main
from qsjax.dit import DiTConfig
from qsjax.quant import Recipe
from qsjax.residual import Residual
from qsjax.sample import SamplingPlan, SparsePlan
from qsjax.sparse import Pattern, Sparsity

V5E, INTERPRET = TARGETS["v5e"], TARGETS["interpret"]
needs_libtpu = pytest.mark.skipif(missing(V5E) is not None, reason="libtpu is not installed")
SMALL = DiTConfig(
    in_channels=4, out_channels=4, hidden_size=256, num_heads=2, num_double_blocks=1, num_single_blocks=1,
    num_refiner_blocks=1, mlp_ratio=2.0, patch_size=(1, 2, 2), rope_axes_dim=(16, 56, 56), rope_theta=256.0,
    text_dim=32, pooled_dim=16, guidance_embeds=True,
)  # fmt: skip
SPARSE = SparsePlan(sparsity=Sparsity(mask="topk", density=0.25, block=128), interval=2)
RESIDUAL = Residual(store="int8")


@pytest.mark.parametrize("mask", ["svg", "topk", "dense"])
def test_density_is_counted_from_the_lists(mask):
    pattern = Pattern(Sparsity(mask=mask, density=0.25, block=16), (4, 8, 8), 20)
    q = jax.random.normal(jax.random.key(0), (1, 276, 2, 8))
    choice = jax.jit(pattern.choose)(q, q, q, jnp.ones((1, 276), jnp.bool_))
    counts = pattern.lists(choice).counts.mean(axis=(0, 1)).sum()
    # Sixteen blocks of video and two of text.
    assert executed_density(pattern) == pytest.approx((float(counts) + 2 * 18) / 18**2)
    if mask == "dense":
        assert executed_density(pattern) == 1


def test_padding_of_tiles_makes_no_more_than_all():
    """Two by two tokens in tiles of four by four are mostly padding."""
    assert executed_density(Pattern(Sparsity(mask="topk", tile=(1, 4, 4), block=16), (2, 2, 2), 20)) == 1  # fmt: skip


@jax.jit
def executed_by_kernels(rows, q, valid, lists):
    """Tiles that the GPU's kernel multiplies and blocks that the TPU's does."""
    operands = (rows, q, q, valid, lists, None)
    counted = {"scale": 0.25, "target": INTERPRET, "count_blocks": True}
    *_, tiles = attention_gpu.launch(*operands, **counted)
    arranged = attention_tpu.arrange(*operands, gather=2, scale=0.25)
    *_, blocks = attention_tpu.launch(arranged, lists, gather=2, **counted)
    return tiles, blocks


@pytest.mark.compiled
@pytest.mark.parametrize("mask", ["svg", "topk"])
def test_kernels_multiply_as_many_blocks_as_the_plan_counts(mask):
    pattern = Pattern(Sparsity(mask=mask, density=0.3, block=128), (4, 16, 16), 150)
    q = jax.random.normal(jax.random.key(0), (1, 1174, 1, 128))
    valid = jnp.ones((1, 1174), jnp.bool_)
    choice = jax.jit(pattern.choose)(q, q, q, valid)
    executed = {}
    for part, lists in (("video", pattern.lists(choice)), ("text", pattern.text_lists())):
        rows = q[:, :1024] if part == "video" else q[:, 1024:]
        tiles, blocks = executed_by_kernels(rows, q, valid, lists)
        executed[part] = int(blocks.sum())
        assert int(tiles.sum()) == executed[part]
    # Eight blocks of video and two of text.
    assert sum(executed.values()) / 10**2 == pytest.approx(executed_density(pattern))


def plan_json(capsys, *arguments):
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_sampling_recipe_is_planned_with_its_weights(capsys):
    size = ("--height", "480", "--width", "832", "--frames", "61")
    report = plan_json(capsys, "--recipe", "quantsparse-w4a8-d15", "--device", "v5e-1", *size)
    assert report["recipe"] == "w4a8"
    kinds = report["steps_by_kind"]
    assert {kind: row["steps"] for kind, row in kinds.items()} == {
        "dense": 4, "refresh": 10, "sparse": 36,
    }  # fmt: skip
    assert kinds["dense"]["executed_density"] == kinds["refresh"]["executed_density"] == 1
    # 15 % of the video's pairs, two blocks of text in 197 for all, and their rows.
    assert 0.165 < kinds["sparse"]["executed_density"] < 0.175
    total = report["flops_per_step"]["total_at_density"]
    assert kinds["sparse"]["flops"] == pytest.approx(total, rel=1e-4)  # of a rounded density
    values = 60 * 24960 * 3072
    assert values < kinds["sparse"]["cache_bytes"] < 1.12 * values
    floors = [kinds[kind]["floor_seconds"]["v5e-1"] for kind in ("dense", "sparse")]
    assert floors[0] > 2 * floors[1]
    assert main(["plan", "--recipe", "svg-d25", *size]) == 0
    text = capsys.readouterr().out
    assert "steps by kind" in text
    assert "recipe bf16" in text


def test_adaptive_steps_are_planned_as_the_refreshes_that_they_may_be(capsys):
    size = ("--height", "480", "--width", "832", "--frames", "61", "--device", "v5e-1")
    changed = ("--recipe", "quantsparse-w4a8-d15", "--sparse.drift", "0.1")
    kinds = plan_json(capsys, *changed, *size)["steps_by_kind"]
    assert {kind: row["steps"] for kind, row in kinds.items()} == {
        "dense": 4, "refresh": 1, "adaptive": 45,
    }  # fmt: skip
    assert kinds["adaptive"]["flops"] == kinds["refresh"]["flops"]


def test_a_sentence_about_a_run_whose_refreshes_are_not_known():
    sparsity = Sparsity(mask="band", density=0.25, block=16)
    plan = SamplingPlan(steps=9, sparse=SparsePlan(sparsity=sparsity, dense_steps=3))

    def sentence(**changes):
        changed = replace(plan, sparse=replace(plan.sparse, **changes))
        return describe(SMALL, changed, (1, 16, 4, 16, 16), 16)

    assert "2 dense, 2 refreshing and 5 sparse steps" in sentence()
    assert "2 dense, at most 4 refreshing and 3 sparse steps" in sentence(drift=0.1)
    assert "2 dense, at most 3 refreshing and 4 sparse steps" in sentence(
        drift=0.1, least_interval=3
    )


def test_an_assumed_target_is_current_only_inside():
    here = targets.current()
    with targets.assumed(V5E):
        assert targets.current() is V5E
    assert targets.current() == here


@remember
def small_steps(place):
    """Programs of refresh and sparse steps, by the place of the cache."""
    # libtpu refuses to slice what is on the host in a loop of one layer.
    config = replace(SMALL, num_double_blocks=2, num_single_blocks=2)
    plan = SamplingPlan(steps=4, sparse=replace(SPARSE, residual=replace(RESIDUAL, place=place)))
    size = {"latents": (2, 16, 32), "text_tokens": 32}
    return compile_steps(config, Recipe.load("w4a8"), plan, V5E, **size)


@pytest.mark.compiled
@needs_libtpu
@pytest.mark.usefixtures("optimized")
def test_small_steps_are_compiled_for_a_tpu():
    made = small_steps("device")
    assert set(made) == {"refresh", "sparse"}
    # Four channels of 2 x 16 rows of floats, padded to 128 lanes. The cache, six times as large, is overwritten in place.
    latents = 4 * 4 * 2 * 16 * 128
    for step in made.values():
        assert 0 < step.argument_bytes < step.peak_bytes < 2e8
        results = step.peak_bytes - step.argument_bytes - step.temporary_bytes
        assert latents <= results < 2 * latents
        assert step.host_bytes == 0
        assert 0 < step.trace_seconds < step.seconds


@pytest.mark.compiled
@needs_libtpu
@pytest.mark.usefixtures("optimized")
def test_a_cache_on_the_host_takes_no_room_on_a_tpu():
    made = {place: small_steps(place) for place in ("device", "host")}
    assert set(made["host"]) == {"refresh", "sparse"}
    # Four layers: 256 tokens of bytes with a scale a head and two log-sum-exps, and factors of rank 16 in two dtypes.
    heads = SMALL.num_heads
    cached = 4 * (256 * (256 + 4 * heads + 2 * 4 * heads) + 16 * (2 * 256 + 4 * 256))
    for kind, there in made["host"].items():
        here = made["device"][kind]
        assert here.argument_bytes - there.argument_bytes == pytest.approx(cached, rel=0.05)
        assert there.host_bytes >= cached


@needs_libtpu
@pytest.mark.compiled
@pytest.mark.usefixtures("optimized")
def test_eight_tpus_share_integer_weights():
    config = replace(SMALL, num_heads=8, rope_axes_dim=(8, 12, 12), num_single_blocks=3)
    size = {"latents": (2, 16, 32), "text_tokens": 32, "chips": 8, "shard_weights": True}
    made = compile_steps(config, Recipe.load("w4a8"), SamplingPlan(steps=1), V5E, **size)["dense"]
    weights = Weights.count(config, Recipe.load("w4a8"))
    # Embedders of time and pooled text are not among a step's arguments.
    assert weights.resident_on(8) / 2 < made.argument_bytes < weights.resident_on(8)
    assert made.argument_bytes < weights.resident - weights.matrices["blocks"] / 2


def test_compiling_needs_one_device(capsys):
    assert main(["plan", "--compile"]) == 2
    assert "name it with --device" in capsys.readouterr().err
    assert main(["plan", "--device", "v5e-2"]) == 2
    assert "known: h100, h200, v5e-1, v5e-8" in capsys.readouterr().err
