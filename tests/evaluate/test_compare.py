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
from qsjax.evaluate.plots import draw, require_matplotlib, write_sheet
from qsjax.evaluate.tables import comparison_table, summary
from qsjax.sample import schedule

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


@pytest.fixture(scope="module")
def comparisons(pipeline, reference):
    return {
        f"{bits} bits": compare(pipeline, reference, rounded(pipeline.dit, bits), show=2)
        for bits in (8, 3)
    }


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
    assert found.videos is None


def test_fewer_bits_are_farther_away(comparisons):
    fine, coarse = comparisons["8 bits"], comparisons["3 bits"]
    assert (fine.psnr > coarse.psnr + 10).all()
    assert (fine.ssim > coarse.ssim).all()
    assert (10 * fine.velocity < coarse.velocity).all()
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
    for damaged in ({}, {**found.to_mapping(), "ssim": [1.0]}, {**found.to_mapping(), "psnr": "x"}):
        with pytest.raises(CheckpointError, match="not the result of a comparison"):
            Comparison.from_mapping(damaged)


def test_tables_pair_rows_with_a_baseline(comparisons):
    results = {**comparisons, "broken": "failed: not finite"}
    lines = comparison_table(results, baseline="3 bits").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "PSNR over 3 bits, dB" in lines[0]
    difference = summary(comparisons["8 bits"], comparisons["3 bits"])["psnr_difference"]
    assert f"{difference.mean:+.2f} +- {difference.error:.2f}" in lines[2]
    assert lines[4].startswith("| broken")
    assert "not finite" in lines[4]
    assert "over" not in comparison_table(comparisons)
    assert "over" not in comparison_table(results, baseline="broken")


def test_pictures(comparisons, reference, tmp_path):
    same = Comparison(np.full(1, 100.0), np.ones(1), np.zeros((2, 1)))
    for path in [*draw(comparisons, tmp_path / "new" / "a"), *draw({"same": same}, tmp_path / "b")]:
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
    with pytest.raises(InputError, match=r"qsjax\[plot\]"):
        require_matplotlib()
