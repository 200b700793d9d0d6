"""The kernel benchmark: floors by hand, what the compiler's text says, and no traceback whatever it does."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import float32_sum

from pallas_kernels import estimate as estimates
from pallas_kernels.block_sparse_attention import bench as attention
from pallas_kernels.block_sparse_attention.bench import svg_band
from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.block_sparse_attention.case import AttentionCase
from pallas_kernels.block_sparse_attention.tiles import steps_apart
from pallas_kernels.deviceless import missing
from pallas_kernels.estimate import NoEstimateError, estimate, instruction_cycles
from pallas_kernels.merge_heads.bench import MergeCase
from pallas_kernels.quantize_tokens.bench import TokensCase
from pallas_kernels.quantized_matmul.bench import MatmulCase
from pallas_kernels.roofline import Peaks, Work, random_like
from pallas_kernels.rotary_heads.bench import RotaryCase
from pallas_kernels.targets import TARGETS
from qsjax.bench import kernel_rows, kernels
from qsjax.bench.attention import _DENSE, against_dense
from qsjax.cli import main

V5E = TARGETS["v5e"]
needs_libtpu = pytest.mark.skipif(missing(V5E) is not None, reason="libtpu is not installed")

SMALL_MATMUL = MatmulCase("small", 32, 256, 128, 4, "xla")
SMALL_TOKENS = TokensCase(32, 256, 128, "xla")
SMALL_ATTENTION = attention.cpu(64, tokens=512)


class Crashing(TokensCase):
    """Its compiler dies."""

    def program(self, target):
        os.abort()


class Failing(TokensCase):
    """Its compiler refuses."""

    def program(self, target):
        raise NotImplementedError("no such layout")


def test_the_floor_is_the_larger_of_compute_and_memory():
    peaks = Peaks({"int8": 100.0, "bfloat16": 50.0}, 10.0, "made up")
    assert Work(400.0, "int8", 30.0).seconds(peaks) == 4.0
    assert Work(400.0, "bfloat16", 30.0).seconds(peaks) == 8.0
    assert Work(400.0, "int8", 50.0).seconds(peaks) == 5.0
    assert Work(400.0, "int8", 30.0).bound(peaks) == "compute"
    assert Work(400.0, "int8", 50.0).bound(peaks) == "memory"
    assert Work(0.0, "float32", 50.0).seconds(peaks) == 5.0
    with pytest.raises(ValueError, match="no peak of float32"):
        Work(1.0, "float32", 50.0).seconds(peaks)
    with pytest.raises(ValueError, match="no peaks are known for interpret"):
        Peaks.of(TARGETS["interpret"])


def test_work_of_a_linear_layer():
    plain = MatmulCase("up", 4096, 3072, 12288, 4, "tpu")
    assert plain.work.operations == 309_237_645_312
    # int8 tokens, half a byte a weight, bfloat16 result
    assert plain.work.bytes == 12_582_912 + 18_874_368 + 100_663_296
    assert plain.work.seconds(Peaks.of(V5E)) == pytest.approx(309_237_645_312 / 394e12)
    gated = MatmulCase("down", 4096, 12288, 3072, 4, "tpu", gated=True)
    assert gated.work.operations == 2 * 4096 * 12288 * 3072
    assert gated.work.bytes == 4096 * 12288 + 12288 * 3072 / 2 + 2 * (2 * 4096 * 3072)
    assert MatmulCase("up", 4096, 3072, 12288, 6, "tpu").work.bytes == (
        12_582_912 + 28_311_552 + 100_663_296
    )


def test_work_of_token_quantization():
    work = TokensCase(4096, 3072, 128, "tpu").work
    assert (work.operations, work.bytes) == (2 * 4096 * 3072 * 128, 3 * 4096 * 3072 + 4 * 4096)
    assert work.bound(Peaks.of(V5E)) == "memory"


def test_work_of_rotary_heads():
    # q, k, v of 24 heads in and out in bfloat16; cosine and sine of 24,960 tokens in float32. The MLP's channels are not read.
    work = RotaryCase(25216, 256, 24, 128, 12288, "tpu").work
    assert work.bytes == 2 * 2 * 25216 * 9216 + 2 * 4 * 24960 * 128
    assert work.seconds(Peaks.of(V5E)) == work.bytes / 819e9


def test_work_of_merge_heads():
    work = MergeCase(24960, 256, 24, 128, 16, "tpu").work
    assert work.bytes == 2 * 2 * 25216 * 3072
    assert work.bound(Peaks.of(V5E)) == "memory"


def test_work_and_steps_of_attention():
    case = attention.hunyuan("uniform", 512, 1024, "tpu", listed=4)
    assert case.work.operations == 4 * 24 * 50 * 4 * 512 * 1024 * 128
    assert case.work.bytes == 4 * 25216 * 24 * 128 * 2
    assert case.steps(V5E) == 24 * 50 * 4
    assert case.executed_density == pytest.approx(4 / 25)
    np.testing.assert_array_equal(case.lists.counts, np.full((1, 24, 50), 4))
    # Sixteen listed blocks of 128 a step, since some rows of so few queries see all keys; a row's last step may be partly empty.
    fine = attention.hunyuan("SVG", 128, 128, "tpu", band=svg_band(0.15))
    counts = np.asarray(fine.lists.counts)[0, 0]
    assert fine.steps(V5E) == 24 * sum(-(-int(count) // 16) for count in counts)
    assert fine.work.operations == 4 * 24 * int(counts.sum()) * 128 * 128 * 128
    assert (counts[-2:] == 197).all()


def test_the_band_of_sparse_videogen():
    # sparse_attention's published table, at this length: s' = 0.15 - 512 / 25216, w = L (1 - sqrt(1 - s'))
    assert svg_band(0.15) == 1664
    for density in (0.15, 0.25):
        case = attention.hunyuan("SVG", 128, 128, "tpu", band=svg_band(density))
        assert case.executed_density == pytest.approx(density, abs=0.005)


def test_steps_whose_blocks_do_not_follow_each_other_are_counted():
    listed = np.random.default_rng(3).random((2, 3, 7, 40)) < np.linspace(0.05, 1, 7)[:, None]
    listed[0, 0] = [False] * 40
    blocks = BlockLists.from_block_map(listed, block_q=128, block_kv=128)
    for gather in (1, 3, 4):
        expected = np.zeros(listed.shape[:3], np.int32)
        for row in np.ndindex(*listed.shape[:3]):
            places = np.flatnonzero(listed[row])
            for start in range(0, len(places), gather):
                step = places[start : start + gather].tolist()
                run = list(range(step[0], step[0] + gather))
                expected[row] += step != run
        np.testing.assert_array_equal(steps_apart(blocks, gather), expected)
    band = attention.hunyuan("SVG", 512, 128, "tpu", band=svg_band(0.15))
    assert 0 < band.apart(V5E) < band.steps(V5E) / 2
    one_block = attention.hunyuan("full", 1024, 1024, "tpu")
    assert one_block.apart(V5E) == 0


def test_a_program_scales_to_the_whole_call():
    case = attention.hunyuan("full", 512, 1024, "tpu")
    program = case.program(V5E)
    assert program.repeats == 24 * 50 / 8
    # Every row of queries fetches all keys and values, in whole blocks.
    fetched = 24 * 50 * 25 * 1024 * 128 * 2 * 2
    assert program.traffic == fetched + 2 * 25216 * 24 * 128 * 2
    assert MatmulCase("up", 4096, 3072, 12288, 4, "tpu").program(V5E).traffic == (
        12_582_912 + 4 * 18_874_368 + 100_663_296
    )


TEXT = """
%fused_computation (p: f32[256]) -> f32[256] {
  ROOT %mul.1 = f32[256]{0:T(256)S(1)} multiply(%p, %p)
}
ENTRY %main.1 {
  %fusion = f32[256]{0:T(256)} fusion(%x), calls=%fused_computation, backend_config={"window_config":{"estimated_cycles":"1826","mask":false},"lists":[],"bundle_analysis_data":{"estimated_cycles":"4","flops":"0"}}
  ROOT %quantized_matmul.1 = bf16[1,256,256]{2,1,0:T(8,128)(2,1)} custom-call(%b), backend_config={"flag_configs":[],"bundle_analysis_data":{"flops":"0","estimated_cycles":"2325"}}
}
"""


def test_cycles_are_the_profilers_not_the_cost_models():
    assert instruction_cycles(TEXT) == {"fusion": 4, "quantized_matmul.1": 2325}
    with pytest.raises(NoEstimateError, match="no cycles"):
        instruction_cycles(TEXT.replace("bundle_analysis_data", "nothing"))


@needs_libtpu
@pytest.mark.parametrize(
    "case",
    [
        MatmulCase("small", 64, 256, 256, 4, "tpu"),
        AttentionCase("full lists", 1024, 1, 128, 128, 128, "tpu"),
    ],
    ids=lambda case: case.label,
)
def test_an_estimate_of_the_real_compiler(case):
    found = estimate(case, V5E)
    assert found.cycles
    assert found.compiler_seconds == sum(found.cycles.values()) * found.repeats / 1.5e9
    assert found.seconds >= found.memory_seconds >= case.work.bytes / 819e9


@needs_libtpu
@pytest.mark.parametrize(
    ("kind", "message"),
    [(Crashing, "ended by SIGABRT"), (Failing, "NotImplementedError: no such layout")],
)
def test_a_compiler_that_dies_is_a_sentence_in_the_report(monkeypatch, kind, message):
    # The other process has to find this module, and what it imports.
    for folder in (Path(__file__).parent.parent, Path(__file__).parent):
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    failure = kernel_rows.estimated(V5E, kind(32, 256, 128, "tpu"))["failure"]
    assert failure.startswith("no estimate: the compiler")
    assert message in failure


def test_a_compiler_that_takes_too_long_is_a_sentence():
    with pytest.raises(NoEstimateError, match=r"more than 0\.001 s"):
        estimate(TokensCase(32, 256, 128, "tpu"), V5E, timeout=1e-3)


def test_random_operands_have_the_shapes_asked_for():
    case = MatmulCase("small", 32, 256, 128, 6, "xla", gated=True)
    x, _, weight, *vectors, residual = operands = case.operands()
    assert x.dtype == jnp.int8
    assert weight.shape == (256, 128)
    assert [x.shape for x in vectors] == [(128,), (128,), (1, 128)]
    assert residual.shape == case.call("xla")(*operands).shape == (32, 128)
    assert random_like({"a": None}) == {"a": None}


@pytest.mark.parametrize(("backend", "target"), [("tpu", "v5e"), ("gpu", "h100")])
@pytest.mark.parametrize("operation", kernels.OPERATIONS)
def test_every_case_fits_its_implementation(operation, backend, target):
    """What is not installed here, or looks for a GPU at once, is left to a machine that has it."""
    for case in kernels.OPERATIONS[operation][backend]:
        # Lists are made here: inside `eval_shape` their counts are not known.
        assert case.work.bytes > 0
        if case.implementation in ("jax_triton", "cudnn"):
            continue
        name = case.implementation
        call = case.call(name if name == "xla" else f"{name}@{target}")
        result = jax.eval_shape(call, *jax.eval_shape(case.operands))
        assert jax.tree.leaves(result)


def test_dense_forms_agree():
    q, k, v, _ = attention.cpu(64, tokens=1024).operands()
    results = [form(q, k, v) for form in _DENSE.values()]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=float32_sum(1024))


def test_sparse_against_dense_on_the_cpu():
    found = against_dense(SMALL_ATTENTION, pairs=1)
    assert found["max_difference"] < float32_sum(512)
    assert found["dense_form"] in _DENSE


@pytest.fixture
def small(monkeypatch):
    """The benchmark with a case or two of each operation, small enough for a test."""
    matmul = {
        "cpu": (SMALL_MATMUL,),
        "tpu": (dataclasses.replace(SMALL_MATMUL, implementation="tpu"),),
    }
    tokens = {
        "cpu": (SMALL_TOKENS,),
        "tpu": (dataclasses.replace(SMALL_TOKENS, implementation="tpu"),),
    }
    full = AttentionCase("full lists", 256, 1, 128, 128, 128, "tpu")
    lists = {
        "cpu": (SMALL_ATTENTION,),
        "tpu": (full, dataclasses.replace(full, label="one of 2", listed=1)),
    }
    names = ("quantized_matmul", "quantize_tokens", "block_sparse_attention")
    monkeypatch.setattr(
        kernels, "OPERATIONS", dict(zip(names, (matmul, tokens, lists), strict=True))
    )
    peaks = kernels.measured_peaks
    monkeypatch.setattr(kernels, "measured_peaks", lambda: peaks(size=64, updated=1024))


FLOOR = {"floor_operations", "floor_unit", "floor_bytes", "floor_seconds", "floor_bound"}


def test_measured_on_the_cpu(capsys, small):
    assert main(["bench", "kernels", "--target", "cpu", "--pairs", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["target"], report["method"]) == ("cpu", "measured")
    assert report["versions"]["jax"]
    assert report["peak_bytes_per_second"] > 0
    assert len(report["rows"]) == 3
    for row in report["rows"]:
        assert set(row) >= {*FLOOR, "operation", "case", "implementation", "measured_seconds"}
        assert row["share_of_floor"] == row["floor_seconds"] / row["measured_seconds"]
        assert not [key for key in row if "estimate" in key]
    assert report["rows"][2]["speedup_over_dense"] > 0
    assert main(["bench", "kernels", "--pairs", "1"]) == 0
    captured = capsys.readouterr()
    assert "measured: 100 %" in captured.err
    assert "speed-up" in captured.out
    assert "estimate" not in captured.out


@needs_libtpu
def test_estimated_without_a_tpu(capsys, monkeypatch, small):
    made_up = estimates.Estimate({"kernel": 3000}, 2.0, 4e-6, 5e-6)

    def one(case, target):
        if isinstance(case, TokensCase):
            raise NoEstimateError("the compiler was ended by SIGABRT")
        return made_up

    monkeypatch.setattr(kernel_rows, "estimate", one)
    assert main(["bench", "kernels", "--target", "v5e", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["method"], report["clock_hertz"]) == ("estimated", 1.5e9)
    matmul, tokens, full, sparse = report["rows"]
    assert matmul["estimated_seconds"] == 5e-6
    assert matmul["estimated_cycles"] == 6000
    assert tokens["failure"] == "no estimate: the compiler was ended by SIGABRT"
    assert "share_of_floor" not in tokens
    assert (full["ratio_to_full_lists"], sparse["executed_density"]) == (1.0, 0.5)
    assert not [key for row in report["rows"] for key in row if "measured" in key]
    assert main(["bench", "kernels", "--target", "v5e"]) == 0
    out = capsys.readouterr().out
    assert "not measurements" in out
    assert "no estimate: the compiler was ended by SIGABRT" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--target", "v99"], "no such target; choose one of v5e"),
        (["kernels", "--target", "h100"], "the default device is cpu, and only v5e, v5p, v6e"),
        (["dit", "--target", "cpu"], "`qsjax bench dit` takes no such argument"),
    ],
)
def test_bad_targets_are_refused(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_missing_compiler_is_named(capsys, monkeypatch):
    monkeypatch.setattr(kernels.deviceless, "missing", lambda target: "pip install libtpu")
    assert main(["bench", "kernels", "--target", "v6e"]) == 2
    assert "pip install libtpu" in capsys.readouterr().err
