"""`qsjax bench step` from answers that are made up: what is added to what, and what the report says when there is no answer."""

import json
from math import prod

import pytest

from pallas_kernels.deviceless import missing
from pallas_kernels.estimate import Estimate, NoEstimateError
from pallas_kernels.targets import TARGETS
from qsjax.bench import rates, step, step_run, vae_tile
from qsjax.budget import plan_memory
from qsjax.budget.overheads import Overheads
from qsjax.budget.parts import HOST_RATE, floors
from qsjax.cli import main
from qsjax.dit import DiTConfig

V5E = TARGETS["v5e"]
needs_libtpu = pytest.mark.skipif(missing(V5E) is not None, reason="libtpu is not installed")
SIZE = ("--frames", "61", "--height", "480", "--width", "832")
ARGUMENTS = ["bench", "step", "--target", "v5e", *SIZE, "--recipe", "quantsparse-w4a8-d15"]
MS = 1_500_000
"""Cycles of a millisecond on a v5e."""
CALL = {"keys": 25216, "heads": 24, "head_dim": 128, "block_q": 128, "block_kv": 128}
LISTED = [
    {**CALL, "queries": 24960, "counts": [[30] * 195]},
    {**CALL, "queries": 256, "counts": [[197] * 2]},
]


def kernel(block, path, part, elements=1000):
    return {
        "block": block, "part": part, "path": path, "calls": 1.0, "elements": elements, "bytes": 8.0, "profiled": 0,
    }  # fmt: skip


def made_up(request):
    """A block has 5 ms of products and 3 of RoPE; the kernels of a sparse step are two of attention and one of tokens."""
    blocks = {name: {"products": 5 * MS, "RoPE and norms": 3 * MS} for name in ("double", "single")}
    answer = {
        "blocks": {**blocks, "ends": {"rest": 20 * MS}},
        "kernels": [],
        "listed": [],
        "cpu_seconds": 10.0,
    }
    if request.kind == "dense" and request.recipe.name != "bf16":  # as by XLA, without a kernel
        for block in ("double", "single"):
            answer["blocks"][block] = {**blocks[block], "attention": 50 * MS}
    elif request.kind != "dense":
        answer["listed"] = LISTED
        for block in ("double", "single"):
            answer["kernels"] += [kernel(block, "attention/k", "attention")] * 2
            answer["kernels"].append(kernel(block, "qkv/q", "token quantization", 2000))
    else:
        answer["kernels"] = [
            kernel(block, "attention/k", "attention") for block in ("double", "single")
        ]
    return answer


RATES = [["double", "qkv/q", 1000, MS, ""], ["single", "qkv/q", 1000, MS, ""]]


@pytest.fixture
def compiler(monkeypatch):
    """What the other processes answer; a test may change it."""
    rules = {
        "rates": lambda only: RATES,
        "step": made_up,
        "attention": 4e-3,
    }

    def in_own_process(module, request, flags="", *, timeout):
        assert timeout > 0
        if module.endswith("kernel_rates"):
            assert (request.step.slot, request.step.kind) == ("nothing", "dense")
            assert "profile" in flags
            answer = rules["rates"](request.only)
        else:
            answer = rules["step"](request)
        if isinstance(answer, Exception):
            raise answer
        return json.loads(json.dumps(answer))

    def estimate(case, target, *, timeout):
        if isinstance(rules["attention"], Exception):
            raise rules["attention"]
        return Estimate({}, 1.0, rules["attention"], 0.0)

    monkeypatch.setattr(step, "in_own_process", in_own_process)
    monkeypatch.setattr(rates, "in_own_process", in_own_process)
    monkeypatch.setattr(step, "estimate", estimate)
    return rules


def test_floors_of_a_block_by_hand():
    config = DiTConfig.preset("hunyuan-video-13b")
    double = floors(config, V5E, tokens=1000, block="double", pairs=1000.0**2)
    assert double["products"] == 24 * 3072**2 * 1000 / 394e12
    assert double["attention"] == 4 * 3072 * 1000**2 / 197e12
    assert double["token quantization"] == 7 * 3072 * 1000 * 3 / 819e9
    assert double["RoPE and norms"] == 6 * 3072 * 1000 * 2 / 819e9
    assert "cache" not in double
    other = floors(
        config, V5E, tokens=1000, block="single", pairs=0.5 * 1000**2, integers=False, cached=819e9
    )
    assert other["attention"] == double["attention"] / 2
    assert other["products"] == 2 * double["products"]
    assert other["cache"] == 1
    assert "token quantization" not in other


@needs_libtpu
def test_a_run_adds_up(capsys, compiler):
    assert main([*ARGUMENTS, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    kinds = report["kinds"]
    assert {kind: row["steps"] for kind, row in kinds.items()} == {
        "dense": 4, "refresh": 10, "sparse": 36, "bf16 dense": 50,
    }  # fmt: skip
    sparse = kinds["sparse"]["blocks"]["double"]
    # Two calls of attention; 2,000 values at the profiled rate.
    assert sparse == pytest.approx({
        "products": 5e-3, "RoPE and norms": 3e-3, "attention": 2 * 4e-3, "token quantization": 2e-3,
    })  # fmt: skip
    assert kinds["sparse"]["seconds"] == pytest.approx(60 * 18e-3 + 20e-3)
    assert kinds["dense"]["seconds"] == pytest.approx(60 * 58e-3 + 20e-3)
    # One kernel, whose lists are known to be full.
    assert kinds["bf16 dense"]["seconds"] == pytest.approx(60 * 12e-3 + 20e-3)
    assert not any(row["doubts"] for row in kinds.values())
    steps = report["run"]["steps"]
    assert steps == pytest.approx({"dense": 4 * 3.5, "refresh": 10 * 1.1, "sparse": 36 * 1.1})
    # Twelve tiles of a stored estimate.
    stored = Overheads.known()["v5e"].decoding
    decoding = 12 * stored.seconds * 16 * 26 * 32 / prod(stored.tile)
    assert report["run"]["seconds"] == pytest.approx(sum(steps.values()) + decoding + 0.046)
    assert report["run"]["steps_cpu_seconds"] == 30
    assert report["ratio_of_steps"] == pytest.approx(50 * 0.74 / sum(steps.values()))
    # As `qsjax plan` has them.
    assert (
        kinds["dense"]["floor_seconds"]
        == kinds["refresh"]["floor_seconds"]
        == pytest.approx(3.25, abs=0.01)
    )
    assert (
        0.16
        < kinds["sparse"]["floors"]["single"]["attention"]
        / kinds["dense"]["floors"]["single"]["attention"]
        < 0.18
    )


@needs_libtpu
def test_a_tile_is_compiled_if_asked(capsys, compiler, monkeypatch):
    def in_own_process(module, request, *, timeout):
        assert (module, request.tile) == ("qsjax.bench.vae_tile", (16, 26, 32))
        return {"cycles": 1.5e9 / 12, "cpu_seconds": 1.5}

    monkeypatch.setattr(vae_tile, "in_own_process", in_own_process)
    assert main([*ARGUMENTS, "--vae", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    assert run["decoding"] == pytest.approx(12 * 0.5)  # six levels
    assert (run["decoding_cpu_seconds"], run["decoding_from"]) == (9.0, "estimated here")


@needs_libtpu
def test_a_cache_on_the_host_counts_as_sent(capsys, compiler):
    assert main([*ARGUMENTS, "--residual.place", "host", "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)["kinds"]
    cached = 24960 * 3072  # int8, and some scales and factors
    for kind in ("refresh", "sparse"):
        sent = kinds[kind]["blocks"]["single"]["host transfers"]
        assert cached < sent * HOST_RATE < 1.12 * cached
    assert "host transfers" not in kinds["dense"]["blocks"]["single"]
    assert main([*ARGUMENTS, "--residual.place", "host"]) == 0
    assert "sent at 16 GB/s, assumed" in capsys.readouterr().out


@needs_libtpu
def test_the_report_in_words(capsys, monkeypatch, compiler):
    monkeypatch.setattr(step_run, "versions", lambda libraries: {"libtpu": "0.0.1"})
    assert main(ARGUMENTS) == 0
    out = capsys.readouterr().out
    assert "nothing is measured" in out
    assert "times as fast as bf16 dense" in out
    assert "doubt" not in out
    assert "libtpu 0.0.1 is used" in out
    assert "pip install libtpu==0.0.52" in out


@needs_libtpu
def test_what_is_not_known_is_said(capsys, compiler):
    compiler["rates"] = lambda only: NoEstimateError("the compiler was ended by SIGABRT")
    compiler["attention"] = NoEstimateError("the compiler was ended by SIGSEGV")
    assert main(ARGUMENTS) == 0
    out = capsys.readouterr().out
    assert (
        "doubt: kernels were not profiled: the compiler was ended by SIGABRT; they count by their bytes"
        in out
    )
    assert "doubt: attention has no estimate" in out
    assert "ended by SIGSEGV" in out


@needs_libtpu
def test_a_kernel_that_ends_the_profiler_leaves_the_others(capsys, compiler):
    def answer(only):
        if only is None or 1 in only:
            return NoEstimateError("the compiler was ended by SIGABRT")
        return [
            row if number in only else [*row[:3], 0, "not asked"]
            for number, row in enumerate(RATES)
        ]

    compiler["rates"] = answer
    assert main([*ARGUMENTS, "--json"]) == 0
    sparse = json.loads(capsys.readouterr().out)["kinds"]["sparse"]
    assert sparse["blocks"]["double"]["token quantization"] == pytest.approx(2e-3)
    assert sparse["blocks"]["single"]["token quantization"] == 8 / 819e9
    (doubt,) = sparse["doubts"]
    assert "qkv/q of a single block was not profiled: the compiler was ended by SIGABRT" in doubt


@needs_libtpu
def test_a_kernel_that_no_one_knows_counts_by_its_bytes(capsys, compiler):
    compiler["rates"] = lambda only: []
    assert main([*ARGUMENTS, "--json"]) == 0
    sparse = json.loads(capsys.readouterr().out)["kinds"]["sparse"]
    assert sparse["blocks"]["double"]["token quantization"] == 8 / 819e9
    assert "qkv/q of a double block was not profiled" in " ".join(sparse["doubts"])


@needs_libtpu
def test_a_step_that_does_not_compile_leaves_the_run_open(capsys, compiler):
    compiler["step"] = lambda request: (
        NoEstimateError("the compiler took more than 9 s")
        if request.kind == "refresh"
        else made_up(request)
    )
    assert main(ARGUMENTS) == 0
    out = capsys.readouterr().out
    assert "refresh: no estimate: the compiler took more than 9 s" in out
    assert "times as fast" not in out
    assert "bf16 dense, s" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a --target"),
        (["--target", "h100"], "only v5e, v5p, v6e can be estimated"),
        (["--target", "v5e", "--frames", "60"], "the nearest valid number is 61"),
        (["--target", "v5e", "--recipe", "quantsparse-w4a8-d15", "--weights", "bf16"], "w4a8"),
    ],
)
def test_bad_requests_are_refused(capsys, arguments, message):
    assert main(["bench", "step", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_a_whole_run_by_the_real_compiler(capsys):
    assert main([*ARGUMENTS, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    kinds = report["kinds"]
    assert not any("failure" in row or row["doubts"] for row in kinds.values())
    for row in kinds.values():
        for block, parts in row["blocks"].items():
            if block != "ends":
                # No estimate is below its floor, and what fits no part is little.
                assert parts["products"] > 0.95 * row["floors"][block]["products"]
                assert parts["attention"] > row["floors"][block]["attention"]
                assert parts["rest"] < 0.02 * sum(parts.values())
    assert kinds["sparse"]["seconds"] < min(kinds["dense"]["seconds"], kinds["refresh"]["seconds"])
    assert report["ratio"] > 0.4
    # The table behind `qsjax plan`: 15 % for what has changed since it was stored, 35 % by another compiler.
    known = Overheads.known()["v5e"]
    same = report["versions"]["libtpu"] == known.libtpu
    planned = plan_memory(
        recipe="quantsparse-w4a8-d15", device="v5e-1", frames=61, height=480, width=832
    )["run_time_estimate"]["v5e-1"]
    for kind, seconds in planned["step_seconds"].items():
        assert kinds[kind]["seconds"] == pytest.approx(seconds, rel=0.15 if same else 0.35)
