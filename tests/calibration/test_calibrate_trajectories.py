"""Sampling runs that are kept whole: on disk as in memory, after an interruption, and the samples that are chosen of them."""

import jax
import numpy as np
import pytest
from calibration.calibration_models import RandomPipeline, random_dit

from qsjax.calibration import collect, gather, walk
from qsjax.errors import InputError
from qsjax.sample import initial_noise
from qsjax.sample.schedule import sigmas

CAPTIONS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def dit():
    return random_dit()


@pytest.fixture(scope="module")
def runs(dit):
    return walk(RandomPipeline(dit), CAPTIONS, seed=5)


def equal(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_begins_with_its_noise_and_has_every_step(runs):
    assert len(runs) == 9
    for number, latents in enumerate(runs.latents):
        assert latents.shape == (4, 4, 4, 6, 4)
        np.testing.assert_array_equal(latents[0], initial_noise(5 + number, (1, 4, 4, 6, 4))[0])
    expected = sigmas(3, 3.0)
    np.testing.assert_array_equal(runs.timestep, 1000 * expected[:-1])
    np.testing.assert_array_equal(runs.delta, np.diff(expected))


def test_the_samples_are_those_that_are_collected_alone(dit, runs):
    alone = collect(RandomPipeline(dit), CAPTIONS, samples=5, seed=5)
    equal(runs.samples(5, seed=5), alone)


def test_an_interrupted_walk_goes_on_after_the_last_whole_run(dit, runs, tmp_path):
    pipeline, folder = RandomPipeline(dit), tmp_path / "trajectories"
    denoise = pipeline.denoise

    def dies(*arguments, **options):
        for result in denoise(*arguments, **options):
            if pipeline.runs == 2 and result.index == 1:
                raise KeyboardInterrupt
            yield result

    pipeline.denoise = dies
    with pytest.raises(KeyboardInterrupt):
        walk(pipeline, CAPTIONS, seed=5, folder=folder)
    assert [path.name for path in folder.iterdir()] == ["0000.npy"]
    again = RandomPipeline(dit)
    stored = walk(again, CAPTIONS, seed=5, folder=folder)
    assert again.runs == 2
    moments = np.array([8, 0, 4])
    equal(stored.moments(moments), runs.moments(moments))
    # A third start samples nothing and needs no text encoder.
    last = RandomPipeline(dit)
    equal(walk(last, CAPTIONS, seed=5, folder=folder).samples(5, 5), runs.samples(5, 5))
    assert (last.runs, last.encoded) == (0, [])


def test_samples_alone_are_kept_too(dit, tmp_path):
    first, again = RandomPipeline(dit), RandomPipeline(dit)
    options = {"samples": 4, "whole": False, "seed": 1, "folder": tmp_path}
    gathered = gather(first, CAPTIONS, **options)
    assert gathered.trajectories is None
    equal(gather(again, CAPTIONS, **options).samples, gathered.samples)
    assert first.runs > again.runs == 0


def test_true_guidance_and_no_captions_are_refused(dit):
    with pytest.raises(InputError, match=r"true_cfg=4\.0.*one velocity a step"):
        walk(RandomPipeline(dit), CAPTIONS, true_cfg=4.0)
    with pytest.raises(InputError, match="no caption"):
        walk(RandomPipeline(dit), [])
