"""One small block of each kind, compiled for a TPU that is not here: what its text says, and how much glue there may be."""

import json
from dataclasses import asdict, replace
from functools import cache as remember

import pytest

from pallas_kernels import targets
from pallas_kernels.deviceless import missing
from pallas_kernels.targets import TARGETS
from qsjax.bench.kernel_calls import calls
from qsjax.bench.listed import ListedCall, listed_calls
from qsjax.bench.step_parts import Kernel
from qsjax.bench.step_program import StepRequest, respond, traced
from qsjax.budget.parts import ENDS, GLUE
from qsjax.dit import DiTConfig
from qsjax.quant import Recipe
from qsjax.residual import Residual
from qsjax.sample import SamplingPlan, SparsePlan
from qsjax.sparse import Sparsity

V5E = TARGETS["v5e"]
pytestmark = [
    pytest.mark.skipif(missing(V5E) is not None, reason="libtpu is not installed"),
    pytest.mark.usefixtures("optimized"),
]
SMALL = DiTConfig(
    in_channels=4, out_channels=4, hidden_size=256, num_heads=2, num_double_blocks=20, num_single_blocks=40,
    num_refiner_blocks=1, mlp_ratio=4.0, patch_size=(1, 2, 2), rope_axes_dim=(16, 56, 56), rope_theta=256.0,
    text_dim=32, pooled_dim=16, guidance_embeds=True,
)  # fmt: skip
VIDEO, TEXT = 4 * 16 * 16, 128
SPARSE = SparsePlan(
    sparsity=Sparsity(mask="svg", density=0.25, block=128), residual=Residual(store="int8")
)
# Cycles of a block, a tenth above what libtpu 0.0.42 says; lower them when there is less glue.
BUDGET = {"double": 178_000, "single": 144_000}
REQUEST = StepRequest(
    config=SMALL, recipe=Recipe.load("w4a8"), plan=SamplingPlan(sparse=SPARSE), kind="sparse", target="v5e",
    latents=(4, 32, 32), text_tokens=TEXT,
)  # fmt: skip


@remember
def answer(kind):
    return respond(replace(REQUEST, kind=kind))


def glue(kind, block):
    parts = answer(kind)["blocks"][block]
    return sum(parts.get(part, 0) for part in GLUE)


@pytest.mark.compiled
def test_a_sparse_step_is_read_block_by_block():
    found = answer("sparse")
    kernels = [Kernel(**one) for one in found["kernels"]]
    tokens = {"double": VIDEO, "single": VIDEO + TEXT}
    for block in ("double", "single"):
        # The MLP's two layers alone are 16 C^2 operations a token; a v5e does 262,144 in a cycle.
        assert found["blocks"][block]["products"] > 16 * 256**2 * tokens[block] / 262_144
        own = [kernel for kernel in kernels if kernel.block == block]
        assert all(kernel.calls == 1 for kernel in own)
        # Lists for the video's queries, and for the text's.
        assert sum(kernel.part == "attention" for kernel in own) == 2
        assert sum(kernel.part == "token quantization" for kernel in own) >= 3
    assert {call["queries"] for call in found["listed"]} == {VIDEO, TEXT}
    (video,) = (call for call in found["listed"] if call["queries"] == VIDEO)
    assert video["keys"] == VIDEO + TEXT
    assert 0.2 < sum(video["counts"][0]) / (len(video["counts"][0]) * 9) < 0.45
    assert found["cpu_seconds"] > 0


@pytest.mark.compiled
@pytest.mark.parametrize("block", ["double", "single"])
def test_glue_of_a_sparse_step_is_within_its_budget(block):
    assert 0 < glue("sparse", block) < BUDGET[block]


@pytest.mark.compiled
def test_every_kernel_of_a_step_is_found_before_it_is_compiled():
    request = replace(REQUEST, plan=SamplingPlan(), kind="dense", slot="nothing")
    with targets.assumed(V5E):
        found = list(calls(traced(request).jaxpr.jaxpr))
    paths = sorted(f"{one.block}: {one.path}" for one in found if one.block != ENDS)
    compiled = [Kernel(**one) for one in answer("sparse")["kernels"] if one["part"] != "attention"]
    assert paths == sorted(f"{one.block}: {one.path}" for one in compiled)
    tokens = [call.equation for call in found if call.path.startswith("linear2/quantize_tokens")]
    sizes = {call.outvars[0].aval.shape[-2:] for call in tokens}
    assert sizes == {(VIDEO + TEXT, 256), (VIDEO + TEXT, 1024)}


@pytest.mark.compiled
def test_text_is_a_call_of_its_own_that_counts_its_own_rows():
    """A call of its own makes its queries, keys and values; they follow the video's."""
    found = [one for one in answer("sparse")["kernels"] if one["path"].endswith("rotary_heads")]
    wrote = sorted((one["block"], one["elements"] // SMALL.hidden_size) for one in found)
    assert wrote == [("double", TEXT), ("double", VIDEO), ("single", TEXT), ("single", VIDEO)]
    scales, tables = 2 * 128 * 4, 2 * TEXT * 128 * 4
    for text in (one for one in found if one["elements"] == TEXT * SMALL.hidden_size):
        assert text["bytes"] == 2 * 3 * TEXT * SMALL.hidden_size * 2 + scales + tables


def test_int8_scores_are_profiled_as_such():
    plan = SamplingPlan(sparse=replace(SPARSE, scores="int8"))
    for call in listed_calls(SMALL, plan, "sparse", V5E, REQUEST.latents, TEXT):
        assert call.case.scores == "int8"


def test_a_refresh_lists_what_is_listed_and_what_is_not():
    config, plan, latents = REQUEST.config, REQUEST.plan, REQUEST.latents
    calls = listed_calls(config, plan, "refresh", V5E, latents, TEXT)
    listed, others = (call for call in calls if call.queries == VIDEO)
    assert [a + b for a, b in zip(listed.counts[0], others.counts[0], strict=True)] == [9] * 8
    (text,) = (call for call in calls if call.queries == TEXT)
    assert set(text.counts[0]) == {9}
    assert listed_calls(config, plan, "dense", V5E, latents, TEXT) == []
    # All of the case's lists are as long as in the run, and a step takes as many blocks as the kernel does.
    case = ListedCall.of(json.loads(json.dumps(asdict(listed)))).case
    assert case.executed_density == pytest.approx(sum(listed.counts[0]) / (8 * 9))
    assert case.steps(V5E) == SMALL.num_heads * 8
    assert case.apart(V5E) == SMALL.num_heads * sum(listed.apart[0])
    assert 0 < sum(others.apart[0]) <= 8


def test_lists_that_are_chosen_later_count_in_full():
    sparse = replace(SPARSE, sparsity=Sparsity(mask="topk", density=0.25, block=128))
    plan = SamplingPlan(sparse=sparse)
    for kind in ("refresh", "sparse"):
        video = listed_calls(SMALL, plan, kind, V5E, REQUEST.latents, TEXT)[0]
        # Two of eight blocks of video, and the text's.
        assert {count for head in video.counts for count in head} == {3}


@pytest.mark.slow
def test_a_refresh_packs_and_factorizes():
    found = answer("refresh")
    for parts in (found["blocks"]["double"], found["blocks"]["single"]):
        assert min(parts["packing"], parts["low rank"]) > 0
