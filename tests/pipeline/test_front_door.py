"""Python's door: arguments spelled out, a recipe by name, file or contents, and a result that keeps what is known of a run."""

import inspect
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

import qsjax
from convert import Sources, convert
from convert.bundled import tiny_model_directory
from qsjax import video
from qsjax.cli import main
from qsjax.config import configs_directory, load_toml
from qsjax.errors import InputError
from qsjax.sample import Settings, Skip, SparsePlan
from qsjax.settings import SamplingRecipe, choose_settings

CAPTION = "a red circle moves left over dark stripes"
SIZE = {"frames": 5, "height": 32, "width": 32, "steps": 8}
NAME = "quantsparse-w4a8-d40"


@pytest.fixture(scope="module")
def w4a8(tmp_path_factory):
    """The bundled model in W4A8, rounded to nearest."""
    folder = tmp_path_factory.mktemp("w4a8") / "checkpoint"
    sources = Sources.find(tiny_model_directory())
    convert(sources, folder, quantize="rtn-w4a8", progress=False)
    return folder


def test_every_argument_is_shown_with_its_type():
    shown = inspect.signature(qsjax.Pipeline.__call__)
    names = ["self", "prompt", "negative_prompt", *Settings.__dataclass_fields__]
    asked = {"seed", "latents", "recipe", "sparse", "skip", "callback", "preview"} | set(names) - {
        "fps"
    }
    assert set(shown.parameters) == asked
    for name, parameter in shown.parameters.items():
        assert name == "self" or parameter.annotation is not inspect.Parameter.empty, name
        assert name == "self" or f"{name}:" in (qsjax.Pipeline.__call__.__doc__ or "").replace(
            "height, width:", "height: width:"
        )


@pytest.mark.whole
def test_a_recipe_from_python_gives_the_bits_of_the_command(w4a8, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(video, "write_video", lambda frames, *_, **__: written.append(frames))
    options = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))]
    words = ["sample", "--model", str(w4a8), "--prompt", CAPTION, "--seed", "7", "--recipe", NAME]
    assert main([*words, *options, "--out", str(tmp_path / "out.mp4")]) == 0
    pipeline = qsjax.Pipeline.from_checkpoint(w4a8, progress=False)
    result = pipeline.generate(CAPTION, seed=7, recipe=NAME, **SIZE)
    np.testing.assert_array_equal(result.frames, written[0])
    assert result.frames.shape == (5, 32, 32, 3)
    assert (result.seed, result.skipped) == (7, 0)
    assert result.settings.sparse == SamplingRecipe.load(NAME).sparse
    assert 0 < result.heads.density.mean() < 1
    assert {"load", "encode", "compile", "denoise", "decode"} <= set(result.timings)
    assert result.latents.shape[:3] == (1, 16, 2)
    with pytest.raises(FrozenInstanceError):
        result.seed = 8
    assert pipeline.resolve(recipe=NAME, sparse=False, **SIZE) == replace(
        result.settings, sparse=None
    )


def test_an_argument_wins_over_a_part_that_over_the_recipe_and_that_over_the_checkpoint():
    part, skip = SparsePlan(interval=9), Skip(threshold=0.3)
    stored = Settings(steps=20, shift=3.0, sparse=SparsePlan(interval=8))
    recipe = {"weights": "w4a8", "interval": 4, "skip": {"threshold": 0.1}}

    def chosen(**changes):
        return choose_settings(stored, "w4a8", **changes)

    assert chosen() == stored
    assert chosen(recipe=recipe).sparse.interval == 4
    assert chosen(recipe=recipe).skip == Skip(threshold=0.1)
    assert chosen(recipe=recipe, sparse=part, skip=skip).sparse == part
    assert chosen(recipe=recipe, sparse=part, skip=skip).skip == skip
    off = chosen(recipe=recipe, sparse=False, skip=False)
    assert off == replace(stored, sparse=None)
    assert chosen(recipe=recipe, steps=5, shift=None) == replace(chosen(recipe=recipe), steps=5)


def test_a_recipe_is_a_name_a_file_its_contents_or_itself(tmp_path):
    expected = SamplingRecipe.load(NAME)
    path = configs_directory() / "sampling" / f"{NAME}.toml"
    for recipe in (NAME, path, str(path), load_toml(path), expected):
        assert SamplingRecipe.of(recipe) == expected
    with pytest.raises(InputError, match="this one is in full precision"):
        choose_settings(Settings(), None, recipe=NAME)
    with pytest.raises(InputError, match="unknown key 'densty'"):
        choose_settings(Settings(), None, recipe={"sparsity": {"densty": 0.5}})
    with pytest.raises(InputError, match="no preset"):
        choose_settings(Settings(), None, recipe="quantsparse")
