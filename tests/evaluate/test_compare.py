"""A model against full precision: videos from the same noise, velocities on the reference's way."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluate_models import SMALL, rounded
from jax import monitoring
from PIL import Image

import qsjax
from qsjax.errors import CheckpointError, InputError
from qsjax.evaluate import Comparison, compare, psnr, reference_run
from qsjax.evaluate.captions import caption_scores
from qsjax.evaluate.plots import draw, require_matplotlib, write_sheet
from qsjax.evaluate.repeats import Repeats
from qsjax.evaluate.tables import comparison_table, summary
from qsjax.sample import schedule
from qsjax.tiny.data import render
from qsjax.tiny.scenes import scene

CAPTIONS = [
    "a red circle moves left over dark stripes",
    "a green square moves up over a light background",
]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)


@pytest.fixture(scope="module")
def reference(pipeline):
    return reference_run(pipeline, CAPTIONS, seed=7, batch=1, **SMALL)


def judge(frames, first):
    """Stands in for a checker: the number of the clip, so that batches are seen to be counted."""
    return np.array([first + clip for clip in range(len(frames))], np.float64)


def distance(frames, others):
    """Stands in for LPIPS."""
    return np.abs(frames - others).mean(axis=(1, 2, 3, 4)).astype(np.float64)


@pytest.fixture(scope="module")
def comparisons(pipeline, reference):
    return {
        f"{bits} bits": compare(
            pipeline, reference, rounded(pipeline.dit, bits), judge=judge, lpips=distance, show=2
        )
        for bits in (8, 3)
    }


@pytest.fixture(scope="module")
def results(comparisons):
    return {label: Repeats({0: one}, fixed=True) for label, one in comparisons.items()}


def test_the_reference_is_what_the_pipeline_samples(pipeline, reference):
    made = np.stack([pipeline(one, seed=7 + n, **SMALL) for n, one in enumerate(CAPTIONS)])
    assert (psnr(reference.clips(2), made.astype(np.float32) / 255) > 50).all()  # of 8 bits
    assert [batch.trajectory.shape for batch in reference.batches] == [(3, 1, 16, 2, 4, 4)] * 2
    assert reference.clips(1).shape == (1, 5, 16, 16, 3)


def test_the_same_weights_are_equal_bit_for_bit(pipeline, reference):
    found = compare(pipeline, reference, pipeline.dit)
    np.testing.assert_array_equal(found.psnr, [100, 100])
    np.testing.assert_allclose(found.ssim, 1)
    np.testing.assert_array_equal(found.velocity, np.zeros((2, 2)))
    assert found.videos is found.caption_score is found.lpips is None


def test_fewer_bits_are_farther_away(comparisons):
    fine, coarse = comparisons["8 bits"], comparisons["3 bits"]
    assert (fine.psnr > coarse.psnr + 10).all()
    assert (fine.ssim > coarse.ssim).all()
    assert (10 * fine.velocity < coarse.velocity).all()
    assert (fine.frame_psnr > coarse.frame_psnr + 10).all()
    assert (coarse.frame_psnr >= coarse.psnr).all()
    assert (10 * fine.lpips < coarse.lpips).all()
    np.testing.assert_array_equal(fine.caption_score, [0, 1])
    assert fine.videos.shape == (2, 5, 16, 16, 3)


def test_velocity_error_is_its_definition(pipeline, reference, comparisons):
    """Both models asked at the reference's latents, without the sampler."""
    numbers, coarse = schedule(reference.settings.plan()), rounded(pipeline.dit, 3)
    batch, run = reference.batches[1], jax.jit(type(coarse).__call__)
    guidance = jnp.full(1, 1000 * reference.settings.guidance, jnp.float32)
    for index, found in enumerate(comparisons["3 bits"].velocity[:, 1]):
        given = jnp.asarray(batch.trajectory[index]), numbers.timestep[index : index + 1]
        other, full = (run(dit, *given, *batch.prompt, guidance) for dit in (coarse, pipeline.dit))
        error = jnp.linalg.norm((other - full).ravel()) / jnp.linalg.norm(full.ravel())
        np.testing.assert_allclose(found, error, rtol=1e-3)


def test_models_of_one_structure_share_a_program(pipeline, reference, comparisons):
    compiled, other = [], rounded(pipeline.dit, 5)
    monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        compare(pipeline, reference, other)
        assert compiled == []
    finally:
        monitoring.clear_event_listeners()


def test_true_guidance(pipeline):
    run = reference_run(pipeline, CAPTIONS[:1], **SMALL | {"steps": 1}, true_cfg=2.0)
    found = compare(pipeline, run, rounded(pipeline.dit, 4))
    assert found.velocity.shape == (1, 1)
    assert 0 < found.velocity[0, 0] < 1


def test_what_cannot_be_compared(pipeline, reference):
    with pytest.raises(InputError, match="at least one"):
        reference_run(pipeline, [])
    other = rounded(pipeline.dit, 4)
    other.config = replace(other.config, text_dim=32)
    with pytest.raises(InputError, match="text_dim is 32 in the model and 64"):
        compare(pipeline, reference, other)
    broken = rounded(pipeline.dit, 4)
    broken.final.linear.bias[...] = jnp.full(broken.final.linear.bias.shape, jnp.nan)
    with pytest.raises(InputError, match="not finite"):
        compare(pipeline, reference, broken)


def test_json_and_back(comparisons):
    found = comparisons["3 bits"]
    again = Comparison.from_mapping(found.to_mapping())
    np.testing.assert_allclose(again.velocity, found.velocity, rtol=1e-5)
    np.testing.assert_allclose(again.lpips, found.lpips, rtol=1e-5)
    for damage in (
        *({"ssim": [1.0]}, {"psnr": "x"}, {"psnr": None}, {"frame_psnr": [1.0]}),
        {"velocity": [1.0, 2.0]},
    ):
        with pytest.raises(CheckpointError, match="not the result of a comparison"):
            Comparison.from_mapping({**found.to_mapping(), **damage})
    with pytest.raises(CheckpointError, match="not the result of a comparison"):
        Comparison.from_mapping({})


def test_results_from_before_there_were_more_figures(comparisons):
    stored = comparisons["3 bits"].to_mapping()
    older = Comparison.from_mapping({name: stored[name] for name in ("psnr", "ssim", "velocity")})
    assert older.frame_psnr is older.caption_score is None
    table = comparison_table({"older": Repeats({0: older}, fixed=True)})
    assert "of frames" not in table
    assert "caption score" not in table
    # Beside a newer one it has empty cells.
    both = {"older": older, "newer": comparisons["8 bits"]}
    lines = comparison_table({k: Repeats({0: v}, fixed=True) for k, v in both.items()}).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert (
        cells[lines[0].split("|").index(next(x for x in lines[0].split("|") if "of frames" in x))]
        == ""
    )


def test_tables_pair_rows_with_a_baseline(results):
    shown = {**results, "broken": "failed: not finite"}
    lines = comparison_table(shown, baseline="3 bits").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[2].strip() == "velocity error, %"
    assert "PSNR over 3 bits, dB" in lines[0]
    found = summary(results["8 bits"], results["3 bits"])
    difference, closer = found["psnr_difference"], found["velocity_difference"]
    assert f"| {difference.mean:+.2f} +- {difference.error:.2f} " in lines[2]
    assert f"| {100 * closer.mean:+.2f} +- {100 * closer.error:.2f} " in lines[2]
    assert lines[4].startswith("| broken")
    assert "not finite" in lines[4]
    assert " over " not in comparison_table(results)
    assert " over " not in comparison_table(shown, baseline="broken")
    assert "not finite" in comparison_table({"broken": "failed: not finite"})


def test_full_precision_has_a_row_of_its_own(results):
    full = results["8 bits"].estimate("caption_score")
    lines = comparison_table(results, full=full).splitlines()
    assert lines[2].startswith("| full precision | 0 ")
    assert "| 50 +- 50 " in lines[2]


def with_seeds(base, gains):
    """Comparisons that differ from one in their PSNR and velocities, by seed."""
    return {s: replace(base, psnr=base.psnr + g, velocity=base.velocity - g / 100) for s, g in gains.items()}  # fmt: skip


def test_seeds_are_paired_with_those_that_the_baseline_has(comparisons):
    base = comparisons["3 bits"]
    several = Repeats(with_seeds(base, {0: 1.0, 1: 2.0, 2: 6.0}))
    assert several.estimate("psnr").mean == pytest.approx(base.psnr.mean() + 3)
    assert several.estimate("psnr").seeds == 3
    fixed = Repeats({0: base}, fixed=True)
    assert several.paired("psnr", fixed).mean == pytest.approx(3)
    assert fixed.paired("psnr", several).mean == pytest.approx(-3)
    two = Repeats(with_seeds(base, {2: 0.0, 5: 9.0}))
    assert several.paired("psnr", two) == two.paired("psnr", several)._replace(
        mean=pytest.approx(6), lowest=pytest.approx(6)
    )
    assert several.paired("velocity", two).mean == pytest.approx(-0.06)
    assert several.paired("psnr", Repeats(with_seeds(base, {7: 1.0}))) is None
    assert "| 3 " in comparison_table({"several": several, "fixed": fixed})
    with pytest.raises(InputError, match="at least one"):
        Repeats({})
    with pytest.raises(InputError, match="no seed changes"):
        Repeats(several.by_seed, fixed=True)


def test_captions_are_judged_by_what_the_frames_show():
    """A real clip fulfils its own caption, and no other's; noise fulfils none."""
    scenes = [scene(7, index, two_objects=0.0) for index in range(3)]
    videos = np.stack([np.moveaxis(render(one, 17, 48, 48), 0, -1) for one in scenes]) / 2 + 0.5
    np.testing.assert_array_equal(caption_scores(videos, scenes), [1, 1, 1])
    turned = [
        replace(one, objects=(replace(thing, color="red" if thing.color != "red" else "blue"),))
        for one in scenes
        for thing in one.objects
    ]
    np.testing.assert_array_equal(caption_scores(videos, turned), [0, 0, 0])


def test_pictures(comparisons, results, tmp_path):
    same = Comparison(np.full(1, 100.0), np.ones(1), np.zeros((2, 1)))
    several = Repeats(with_seeds(comparisons["3 bits"], {0: 1.0, 1: 2.0}))
    shown = {**results, "two seeds": several}
    equal = {"same": Repeats({0: same}, fixed=True)}
    for path in [*draw(shown, tmp_path / "new" / "a"), *draw(equal, tmp_path / "b")]:
        with Image.open(path) as image:
            assert image.width > image.height
    videos = {label: found.videos for label, found in comparisons.items()}
    sheet = write_sheet(videos, CAPTIONS, tmp_path / "sheet.png")
    with Image.open(sheet) as image:
        assert image.height > 4 * 16
    with pytest.raises(InputError, match="as many clips"):
        write_sheet(videos, CAPTIONS[:1], sheet)
    with pytest.raises(InputError, match="no result"):
        draw({}, tmp_path / "c")


def test_plots_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install .\.\[plot\]"):
        require_matplotlib()
