"""Calibrating a checkpoint on disk: the same bits as in memory, and after any interruption."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from flax import nnx

from qsjax.calibrate import METHODS, Samples, calibrate_module, loop
from qsjax.calibrate.checkpoint import calibrate_checkpoint
from qsjax.calibrate.programs import Programs
from qsjax.checkpoint import CheckpointWriter, Manifest
from qsjax.dit import load_dit
from qsjax.errors import InputError
from qsjax.quant import Recipe

METHOD = replace(METHODS["msad"], epochs=1, inputs="quantized")  # both files matter
RECIPE = Recipe.load("w4a8")


class Killed(BaseException):
    """Nothing catches it and nothing tidies up: what a kill -9 leaves behind."""


def samples():
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    return Samples(
        latents=normal(2, 16, 2, 8, 8),
        timestep=np.array([900, 300], np.float32),
        text=normal(2, 6, 64),
        mask=np.arange(6)[None] < np.array([[6], [4]]),
        pooled=normal(2, 64),
        guidance=np.full(2, 4000, np.float32),
    )


def calibrate(source, destination, make=samples, **options):
    settings = {"described": {"captions": ["a"]}, "dtype": jnp.float32, "progress": False}
    return calibrate_checkpoint(source, destination, make, RECIPE, METHOD, **(settings | options))


def checksums(directory):
    return {leaf: spec["sha256"] for _, leaf, spec in Manifest.read(directory).leaves("dit")}


@pytest.fixture(scope="module")
def compiled():
    """How often the step was compiled for `whole`."""
    return []


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory, compiled):
    destination = tmp_path_factory.mktemp("calibrated") / "w4a8"
    Programs.step.clear_cache()
    with compilations() as counts:
        calibrate(tiny_checkpoint, destination)
    compiled.append(counts["step"])
    return destination


def test_two_steps_are_compiled(whole, compiled):
    """Weights off a disk are bound to a device: one step for each kind of block all the same."""
    assert compiled == [2]


def test_memory_and_disk_give_the_same_bits(tiny_checkpoint, whole):
    made, _ = calibrate_module(
        load_dit(tiny_checkpoint, dtype=jnp.float32), samples(), RECIPE, METHOD
    )
    loaded = load_dit(whole, dtype=jnp.float32)
    ours, theirs = (dict(nnx.to_flat_state(nnx.state(dit))) for dit in (made, loaded))
    assert set(ours) == set(theirs)
    for path, variable in ours.items():
        one, other = (np.asarray(v.get_value()) for v in (variable, theirs[path]))
        np.testing.assert_array_equal(one, other, err_msg=str(path))


def test_what_the_manifest_says(tiny_checkpoint, whole):
    data, old = Manifest.read(whole).data, Manifest.read(tiny_checkpoint).data
    dit = data["components"]["dit"]
    assert dit["recipe"]["name"] == "w4a8"
    assert dit["clipped"] is True
    assert dit["calibration"]["method"]["name"] == "msad"
    assert len(dit["calibration"]["blocks"]) == 9
    assert data["components"]["vae"] == old["components"]["vae"]
    assert not whole.with_name(whole.name + ".calibration").exists()
    stored = sum(
        int(np.prod(spec["shape"])) * jnp.dtype(spec["dtype"]).itemsize
        for _, _, spec in Manifest.read(whole).leaves("dit")
    )
    assert dit["bytes"] == stored
    # Rotations of 128 x 128 weigh as much as the packed layers of a model of that width.
    assert stored < 0.6 * old["components"]["dit"]["bytes"]


def kill_in_training(monkeypatch):
    step, done = loop.one_block.calibrate, []

    def dies(*arguments, **options):
        done.append(1)
        if len(done) == 3:
            raise Killed
        return step(*arguments, **options)

    monkeypatch.setattr(loop.one_block, "calibrate", dies)


def kill_before_storing(monkeypatch):
    write, done = CheckpointWriter.write_item, []

    def dies(self, *arguments, **options):
        done.append(1)
        if len(done) == 4:
            raise Killed
        return write(self, *arguments, **options)

    monkeypatch.setattr(CheckpointWriter, "write_item", dies)


def kill_after_storing(monkeypatch):
    write, done = CheckpointWriter.write_item, []

    def dies(self, *arguments, **options):
        write(self, *arguments, **options)
        done.append(1)
        if len(done) == 4:
            raise Killed

    monkeypatch.setattr(CheckpointWriter, "write_item", dies)


def kill_at_the_end(monkeypatch):
    def dies(*_, **__):
        raise Killed

    monkeypatch.setattr(CheckpointWriter, "finish", dies)


@pytest.mark.parametrize(
    "kill", [kill_in_training, kill_before_storing, kill_after_storing, kill_at_the_end]
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    kill, tiny_checkpoint, whole, tmp_path, monkeypatch
):
    destination = tmp_path / "w4a8"
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            calibrate(tiny_checkpoint, destination)
    assert not destination.exists()

    def never():
        raise AssertionError("samples were made again")

    calibrate(tiny_checkpoint, destination, never)
    assert checksums(destination) == checksums(whole)


def test_other_samples_are_not_mixed_in(tiny_checkpoint, tmp_path, monkeypatch):
    destination = tmp_path / "w4a8"
    with monkeypatch.context() as patch:
        kill_after_storing(patch)
        with pytest.raises(Killed):
            calibrate(tiny_checkpoint, destination)
    with pytest.raises(InputError, match="unfinished"):
        calibrate(tiny_checkpoint, destination, described={"captions": ["b"]})


def test_a_quantized_checkpoint_is_not_calibrated_again(whole, tmp_path):
    with pytest.raises(InputError, match="quantized already"):
        calibrate(whole, tmp_path / "again")


def test_the_loaded_model_runs(whole):
    dit, given = load_dit(whole, dtype=jnp.float32), samples()
    velocity = jax.jit(lambda dit, given: dit(*given))(dit, jax.tree.map(jnp.asarray, given))
    assert velocity.shape == given.latents.shape
    assert np.isfinite(velocity).all()
