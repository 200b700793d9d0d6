"""Previews: the map to colours, its cache, what a callback gets, and the picture."""

import json

import numpy as np
import pytest
from PIL import Image

import qsjax
from qsjax.disk import DiskError
from qsjax.errors import InputError
from qsjax.preview import Colours, PreviewSheet, colours_of, fitting

SIZE = {"frames": 5, "height": 16, "width": 24, "steps": 4}
"""That of tests/pipeline, which leaves programs on disk."""
CAPTION = "a red circle moves left over a dark background"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "_CLIPS", 3)
    return tmp_path / "cache" / "previews"


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)


def test_a_linear_map_is_found(pipeline):
    noise = np.random.default_rng(0)
    latents, matrix = noise.normal(size=(2, 16, 3, 8, 8)), noise.normal(size=(17, 3))
    colours = np.moveaxis(np.moveaxis(latents, 1, -1) @ matrix[:-1] + matrix[-1], -1, 1)
    found = Colours.fitted(latents, colours)
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-5)
    assert found(latents).shape == (2, 3, 8, 8, 3)
    again = Colours.of_plain(json.loads(json.dumps(found.plain())), 16)
    np.testing.assert_array_equal(again.matrix, found.matrix)


def test_the_autoencoder_is_fitted_once_and_colours_are_near(pipeline, cache):
    """Clips that the fit has not seen: a hundredth of the largest squared error is a tenth of the range."""
    loads = []

    def vae():
        loads.append(1)
        return pipeline.vae

    found = colours_of(pipeline.vae_config, "a" * 64, vae)
    clip = fitting._clip(np.random.default_rng(1), 5, 64)
    latents = np.asarray(pipeline.vae.encode(clip[None]).mode()) * pipeline.vae_config.scaling_factor  # fmt: skip
    expected = np.moveaxis(fitting._means(clip, pipeline.vae_config), 0, -1)
    assert np.square(found(latents)[0] / 127.5 - 1 - expected).mean() < 0.01 * expected.var()
    (file,) = cache.iterdir()
    again = colours_of(pipeline.vae_config, "a" * 64, vae)
    assert len(loads) == 1
    np.testing.assert_array_equal(again.matrix, found.matrix)
    for damaged in (b"{", b"[]", b'{"matrix": [[1.0]]}', file.read_bytes().replace(b"[", b"[1e9, ", 1)):  # fmt: skip
        file.write_bytes(damaged)
        colours_of(pipeline.vae_config, "a" * 64, vae)
    assert len(loads) == 5
    values = json.loads(file.read_text())["matrix"]
    for rows in (values[:-1], [[True] * 3] * 17, [[1e300] * 3] * 17, "x", [[[]] * 3] * 17):
        with pytest.raises(InputError, match="the map to colours"):
            Colours.of_plain({"matrix": rows}, 16)


def test_a_cache_that_cannot_be_written_costs_a_warning(pipeline, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("in the way")
    colours_of(pipeline.vae_config, "b" * 64, lambda: pipeline.vae)
    assert "cannot be written" in caplog.text


def test_the_callback_gets_frames_every_so_many_steps_and_after_the_last(pipeline, cache):
    seen = {}

    def callback(step, latents, frames):
        seen[step] = (np.asarray(latents), frames)

    result = pipeline.generate(CAPTION, seed=1, callback=callback, preview=3, **SIZE)
    assert [step for step, (_, frames) in seen.items() if frames is not None] == [3, 4]
    last = seen[4][1]
    assert (last.shape, last.dtype) == ((1, 2, 4, 6, 3), np.uint8)
    np.testing.assert_array_equal(last, pipeline._colours(np.asarray(result.latents)))
    # Where a step leads to, which is nearer to the end than the latents that still have noise.
    noisy, clean = (
        np.abs(frames.astype(int) - last).mean()
        for frames in (pipeline._colours(seen[3][0]), seen[3][1])
    )
    assert clean < noisy
    # The video is the same without.
    np.testing.assert_array_equal(pipeline(CAPTION, seed=1, **SIZE), result.frames)
    for preview, message in ((-1, "give a number of steps"), (1, "to a callback")):
        with pytest.raises(InputError, match=message):
            pipeline.generate(CAPTION, preview=preview, **SIZE)


def test_the_picture_grows_and_a_disk_that_refuses_ends_no_run(tmp_path, monkeypatch, caplog):
    sheet = PreviewSheet(tmp_path / "a.mp4", 9)
    frames = np.full((1, 3, 4, 6, 3), 200, np.uint8)
    sheet(1, None, None)
    assert not list(tmp_path.iterdir())
    for number in (3, 6):
        sheet(number, None, frames)
        with Image.open(tmp_path / "a.preview.png") as image:
            assert image.size == (3 * (96 + 4) + 4, number // 3 * (64 + 16 + 4) + 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.preview.png"]

    def full(*_, **__):
        raise DiskError(tmp_path, "No space left on device")

    monkeypatch.setattr("qsjax.preview.sheet.write_contact_sheet", full)
    sheet(9, None, frames)
    assert "no preview" in caplog.text
