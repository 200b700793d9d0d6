"""The grid of sparse attention: rows as data, what is measured, resumption, the report."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from evaluate_models import SMALL

import qsjax
from qsjax.calibration import METHODS
from qsjax.errors import InputError
from qsjax.experiments.row import select
from qsjax.experiments.sparse import SparseExperiment, SparseReport, sparse_grid
from qsjax.experiments.sparse.grid import COMPARED, SparseRow
from qsjax.experiments.sparse.lines import lines
from qsjax.experiments.sparse.plots import draw_sparse
from qsjax.experiments.sparse.report import tables_text
from qsjax.residual import POLICIES, Residual
from qsjax.sample import SparsePlan
from qsjax.sparse import Sparsity
from qsjax.tiny.streams import HELD_OUT, STREAMS, held_out

PLAN = SparsePlan(
    sparsity=Sparsity(mask="topk", density=0.3, block=4),
    residual=Residual(policy="first", store="float32"),
    interval=2,
)
ROWS = (
    SparseRow(group="policies", label="first", sparse=PLAN),
    SparseRow(group="policies", label="none", sparse=replace(PLAN, interval=0, residual=Residual(policy="none"))),
    SparseRow(group="policies", label="everything", sparse=replace(PLAN, sparsity=replace(PLAN.sparsity, density=1.0))),
    SparseRow(group="policies", label="dense"),
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)


def experiment(pipeline, folder, **changes):
    return SparseExperiment(pipeline, folder, **({"captions": 2, "seed": 5} | SMALL | changes))


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    made = experiment(pipeline, folder)
    return folder, made, made.run(ROWS)


def test_rows():
    rows = sparse_grid()
    assert len({row.name for row in rows}) == len(rows)
    main = select(rows, r"^float, svg, 15 %, shift 3/")
    assert {row.label for row in main} == set(POLICIES)
    assert main[0].label == "first"
    elsewhere = {row.label for row in select(rows, r"^float, topk, 40 %, shift 7/")}
    assert elsewhere == set(COMPARED)
    quantized = [row.name for row in select(rows, r"^W4A8, svg, 15 %, shift 3/")]
    assert [
        f"W4A8, svg, 15 %, shift 3/nearest, 1 dense, seed {seed}" in quantized for seed in range(4)
    ] == [True] * 3 + [False]
    assert [row.sparse.interval for row in main if row.label in ("first", "none")] == [5, 0]
    by_name = {row.name: row for row in rows}
    # The same experiment in two tables is run once.
    ours = by_name["float, svg, 15 %, shift 3/recall-following"]
    elsewhere = (
        "baselines, float, 15 %, shift 3/ours",
        "together, svg, 15 %, shift 3/sparse",
        "W4A8, svg, 15 %, shift 3/full precision, 1 dense",
    )
    for other in elsewhere:
        assert by_name[other].key == ours.key
    assert by_name["together with outliers, svg, 15 %, shift 3/both, seed 0"].key != ours.key


def test_rows_of_few_steps_have_a_reference_of_as_many(pipeline, tmp_path):
    rows = select(sparse_grid(), r"^few steps, float, svg, 15 %, 8 steps, shift 17/")
    assert len({row.reference_name for row in rows}) == 1
    assert {row.label: row.sparse.kinds(8).count("refresh") for row in rows} == {
        **dict.fromkeys(("full at 0",), 1),
        **dict.fromkeys((f"full at 0, {step}" for step in (1, 4, 6, 7)), 2),
        **{"full at 0, 4, no cache": 2, "full at 0, 2, 5": 3},
    }
    settings = experiment(pipeline, tmp_path)._reference_settings(rows[0])
    assert (settings["steps"], settings["shift"]) == (8, 17.0)
    other = select(sparse_grid(), r"^few steps, float, svg, 15 %, 6 steps, shift 17/")[0]
    assert other.key != rows[0].key
    assert other.reference_name != rows[0].reference_name
    assert "steps" not in ROWS[0].content()


def test_dense_attention_is_equal_and_less_is_not(finished):
    psnr = {one.row.label: one.psnr for one in finished[2]}
    assert (psnr["dense"] == 100).all()
    assert (psnr["everything"] > 60).all()
    assert (psnr["none"] < 60).all()
    latents = {one.row.label: one.latents for one in finished[2]}
    assert (latents["dense"] == 0).all()
    assert (latents["everything"] < 1e-8).all()
    assert (latents["none"] > 1e-5).all()


def test_density_is_the_mean_over_steps(finished):
    steps = SMALL["steps"]
    density = {one.row.label: one.density for one in finished[2]}
    assert density["dense"] == density["everything"] == 1
    assert 0 < density["none"] <= density["first"] < 1
    assert density["none"] > 1 / steps


def test_a_second_run_repeats_nothing(pipeline, finished):
    folder, _, before = finished
    again = experiment(pipeline, folder)
    after = again.run(ROWS)
    assert not again._references
    assert tables_text(lines(after)) == tables_text(lines(before))


def test_captions_of_another_part_of_the_stream(pipeline, finished, tmp_path):
    before = finished[1]
    later = experiment(pipeline, tmp_path, first_caption=1)
    assert later.clips.captions[0] == before.clips.captions[1]
    assert later.facts["first_caption"] == 1
    assert "first_caption" not in before.facts
    with pytest.raises(InputError):
        experiment(pipeline, tmp_path, first_caption=-1)


def test_captions_and_noise_are_those_of_older_tables_unless_a_stream_is_named(
    pipeline, finished, tmp_path
):
    made = finished[1]
    assert made.clips.captions == [scene.caption for scene in held_out(HELD_OUT, 2)]
    assert made.clips.noise == made.clips.calibration_noise(5) == 5
    assert "stream" not in made.facts
    reported = experiment(pipeline, tmp_path, stream="report", seed=1)
    assert not set(reported.clips.captions) & set(made.clips.captions)
    assert reported.clips.noise == STREAMS["report"].noise
    assert reported.clips.calibration_noise(1) == STREAMS["calibration"].noise + 1000


def test_rows_of_the_same_programs_follow_each_other(pipeline, finished, tmp_path, monkeypatch):
    made, done = experiment(pipeline, tmp_path), []

    def outcome(row, number):
        done.append(row.label)
        return finished[2][0]._replace(row=row)

    monkeypatch.setattr(made, "_outcome", outcome)
    later = replace(ROWS[0], label="first, interval 3", sparse=replace(PLAN, interval=3))
    rows = (*ROWS, later)
    assert [one.row for one in made.run(rows)] == list(rows)
    assert done == ["first", "first, interval 3", "none", "everything", "dense"]


def test_a_report(finished):
    folder, made, outcomes = finished
    report = SparseReport(made, outcomes)
    files = report.write(folder)
    written = {"sparse_tables.md", "policies.png", "sparse_tables.html"}
    assert {path.name for path in files} == written
    page = (folder / "sparse_tables.html").read_text()
    assert page.count("<td>first</td>") == 1
    assert page.count("src=") == page.count('src="data:image/png;base64,') == 1
    assert len(re.findall("PSNR over first, dB", (folder / "sparse_tables.md").read_text())) == 1
    report = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert [row["label"] for row in report["rows"]] == [row.label for row in ROWS]
    assert report["rows"][0]["psnr"]["count"] == 2


def test_a_line_for_settings_that_have_all_policies(finished):
    one = finished[2][1]
    some = [
        one._replace(psnr=one.psnr + gain, row=replace(one.row, group=group, label=label))
        for group, count in (("all", 5), ("two", 2))
        for label, gain in list(zip(COMPARED, (0.0, -9.0, 1.0, 2.5, 3.5), strict=True))[:count]
    ]
    head, _, line = tables_text(lines(some)).split("### all")[0].strip().splitlines()[-3:]
    assert line.startswith("| all ")
    assert [cell.split()[0] for cell in line.split("|")[-5:-1]] == [
        *("-9.00", "+1.00", "+2.50", "+3.50")
    ]
    assert head.count("over first") == 4
    assert "### policies" not in tables_text(lines(some[5:]))


def test_plots_over_density_and_bars(finished, tmp_path):
    outcomes = finished[2]
    first, none = outcomes[0], outcomes[1]
    group = "float, topk, {} %, shift 3"
    by_density = [
        one._replace(row=replace(one.row, group=group.format(density), sparse=sparse))
        for density in (15, 25)
        for one in (first, none)
        for sparse in [replace(PLAN, sparsity=replace(PLAN.sparsity, density=density / 100))]
    ]
    alone = "baselines, float, 15 %, shift 3"
    others = [one._replace(row=replace(one.row, group=alone)) for one in (first, none)]
    files = draw_sparse(lines([*outcomes, *by_density, *others]), tmp_path)
    bars = {"policies-psnr.png", "baselines-float-15-shift-3-psnr.png"}
    assert {path.name for path in files} == {*bars, "float-topk-shift-3.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)


def test_errors_that_add_up(finished):
    _, _, outcomes = finished
    row = outcomes[0].row
    parts = [np.array([0.1, 0.2]), np.array([0.2, 0.2]), np.array([0.3, 0.2])]
    made = [
        outcomes[0]._replace(row=replace(row, group="together", label=label), latents=latents)
        for label, latents in zip(("W4A8", "sparse", "both"), parts, strict=True)
    ]
    # 1 and 0.5 clip by clip; 0.25 over 0.15 + 0.2 of the means.
    assert "sum of the parts: 0.75 +- 0.25 clip by clip, 0.71 of the means" in tables_text(
        lines(made)
    )


def test_latent_errors_of_placements_clip_by_clip(finished):
    _, _, outcomes = finished
    row = outcomes[0].row
    made = [
        outcomes[0]._replace(row=replace(row, group="placement", label=label), latents=latents)
        for label, latents in (("now", np.array([0.1, 0.4])), ("then", np.array([0.1, 0.2])))
    ]
    # 0 and -0.2; log 1 and log 1/2.
    text = tables_text(lines(made))
    assert [cell.strip() for cell in text.split("| then |")[2].splitlines()[0].split("|")[:2]] == [
        "-0.1000 +- 0.1000",
        "-0.35 +- 0.35",
    ]


def test_lines_of_several_calibrations_are_paired_seed_by_seed(finished):
    one, tuned = finished[2][0], METHODS["tuned"]

    def outcome(label, seed, method, *psnr):
        row = replace(one.row, group="W4A8", label=label, method=method, seed=seed)
        return one._replace(row=row, psnr=np.array(psnr))

    nearest, better, dense = lines(
        [
            *(outcome("nearest", seed, tuned, 20.0 + seed, 30.0) for seed in range(3)),
            *(outcome("better", seed, tuned, 24.0 + seed, 34.0) for seed in (0, 2)),
            outcome("dense", 0, None, 40.0, 41.0),
        ]
    )
    assert (nearest.seeds, better.seeds, dense.seeds) == ((0, 1, 2), (0, 2), (0,))
    assert nearest.estimate("psnr").mean == 25.5
    # The same four decibels everywhere, over the seeds that both have.
    assert better.paired("psnr", nearest)[:2] == (4.0, 0.0)
    # What is not calibrated is that of all seeds.
    assert dense.paired("psnr", nearest).mean == 15
    assert nearest.paired("psnr", dense).mean == -15
    (other,) = lines([outcome("other", 5, tuned, 1.0, 1.0)])
    assert other.paired("psnr", nearest) is None
    text = tables_text([nearest, better, dense])
    assert [
        line.split("|")[-2].strip()
        for line in text.splitlines()
        if line[:3] in ("| n", "| b", "| d")
    ] == ["3", "2", "1"]
