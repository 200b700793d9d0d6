"""Tuning end to end: gradients through packed layers, what changes and what stays, and runs that are killed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calibration.calibration_models import (
    RECIPE,
    random_checkpoint,
    random_samples,
    random_trajectories,
)
from tolerances import float32_sum

from qsjax.calibration import METHODS, Gathered, Moments, calibrate_module, module
from qsjax.calibration.checkpoint import calibrate_checkpoint
from qsjax.calibration.moments import moment_order
from qsjax.calibration.tuning import BATCH, Tuned, Tuner, paces, tune
from qsjax.calibration.tuning_store import TuningStore
from qsjax.checkpoint import CheckpointWriter, Manifest
from qsjax.dit import load_dit
from qsjax.params import map_parameters, parameters
from qsjax.quant import Precision
from qsjax.quant.linear import QuantizedLinear
from qsjax.quant.storage import linear_leaves
from qsjax.quant.tuned import TunedLinear, iterate_quantized, with_tuned_layers

STEPS = 12
ROUNDED = METHODS["vidit"]
METHOD = replace(ROUNDED, tune_steps=STEPS, tune_learning_rate=1e-2)


# Of two runs of three steps.
ORDER = moment_order(2, 3, STEPS * BATCH, early=0.0, seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("floats"))


@pytest.fixture(scope="module")
def floats(checkpoint):
    return load_dit(checkpoint, dtype=jnp.float32)


@pytest.fixture(scope="module")
def runs(floats):
    return random_trajectories(floats)


@pytest.fixture(scope="module")
def rounded(floats, runs):
    """Rounded to nearest, with clips of 1 to be tuned: `calibrate_module` without its last step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tune", lambda *_, **__: ({}, []))
        dit, _ = calibrate_module(floats, random_samples(), RECIPE, METHOD, trajectories=runs)
    return dit


@pytest.fixture(scope="module")
def tuned(rounded, runs):
    return tune(rounded, runs, METHOD)


def layer(precision, rows=16, columns=6, seed=0):
    random = np.random.default_rng(seed)
    kernel = random.standard_normal((rows, columns)).astype(np.float32)
    leaves = linear_leaves(jnp.asarray(kernel), precision)
    leaves["bias"] = random.standard_normal(columns).astype(np.float32)
    if precision.activations < 16:
        leaves["clip"] = np.asarray([0.8], np.float32)
        leaves["smoothing"] = (1 + random.random(rows)).astype(np.float32)
        leaves["rotation"] = np.linalg.qr(random.standard_normal((8, 8)))[0].astype(np.float32)
    leaves = {name: jnp.asarray(leaf) for name, leaf in leaves.items()}
    return QuantizedLinear(leaves, rows=rows, precision=precision, dtype=jnp.float32)


@pytest.mark.parametrize(
    "precision",
    [
        Precision(weights=4, activations=8),
        Precision(weights=6, activations=6),
        Precision(weights=4),
        Precision(weights=8, group=4),
    ],
    ids=lambda precision: f"w{precision.weights}a{precision.activations}g{precision.group}",
)
def test_a_tuned_layer_computes_what_the_packed_one_does(precision):
    packed = layer(precision)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 16)), jnp.float32)
    ours, theirs = TunedLinear(packed)(x), packed(x)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=float32_sum(16) * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["scale", "bias", "clip"])
def test_gradients_are_those_of_the_rounded_function(name):
    """Against differences. Where a clip moves, integers within the range stay, so that their scale moves as it does."""
    tuned = TunedLinear(layer(Precision(weights=4, activations=8)))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((400, 16)), jnp.float32)
    start = parameters(tuned)[name]

    def loss(value):
        changed = map_parameters(lambda leaf, x: value if leaf == name else x, tuned)
        return jnp.square(changed(x)).sum()

    step = 1e-2 * start
    expected = (loss(start + step) - loss(start - step)) / 2e-2
    found = (jax.grad(loss)(start) * start).sum()
    # Steps of the rounding make differences rough where the clip moves.
    np.testing.assert_allclose(found, expected, rtol=0.2 if name == "clip" else 1e-2)


@pytest.mark.whole
def test_what_the_backward_pass_keeps_changes_nothing(rounded, runs, tuned):
    """Two steps; the second loss depends on every gradient of the first."""
    few = replace(METHOD, tune_steps=STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qsjax.calibration.tuning.moment_order", lambda *_, **__: ORDER[: 2 * BATCH])
        _, curve = tune(rounded, runs, few, kept="everything")
    np.testing.assert_allclose(curve, tuned[1][:2], rtol=1e-5)


def test_tuning_lowers_the_error_and_leaves_the_integers(rounded, runs, tuned):
    leaves, curve = tuned
    assert len(curve) == STEPS
    before = parameters(rounded)
    kinds = {name.rpartition(".")[-1] for name in leaves}
    assert kinds == {"scale", "bias", "clip"}
    assert all(np.any(leaf != np.asarray(before[name])) for name, leaf in leaves.items())
    after = map_parameters(lambda name, value: jnp.asarray(leaves.get(name, value)), rounded)
    moments = runs.moments(ORDER[:BATCH])
    errors = [velocity_error(dit, moments) for dit in (rounded, after)]
    assert errors[1] < 0.9 * errors[0], errors


def test_the_first_loss_is_the_packed_models_error(rounded, runs, tuned):
    moments = runs.moments(ORDER[:BATCH])
    np.testing.assert_allclose(tuned[1][0], velocity_error(rounded, moments), rtol=1e-3)


def velocity_error(dit, moments):
    *inputs, velocity = moments
    out = jax.jit(type(dit).__call__)(dit, *inputs)
    axes = (1, 2, 3, 4)
    return float((jnp.square(out - velocity).sum(axes) / jnp.square(velocity).sum(axes)).mean())


def test_moments_are_the_inputs_and_velocities_of_the_steps(floats, runs):
    """Moment 4 is step 1 of the second run, whose velocity the model itself tells."""
    moments = runs.moments(np.array([4]))
    assert isinstance(moments, Moments)
    np.testing.assert_array_equal(moments.latents[0], runs.latents[1][1])
    assert moments.timestep[0] == runs.timestep[1]
    *inputs, velocity = moments
    np.testing.assert_allclose(
        velocity, jax.jit(type(floats).__call__)(floats, *inputs), rtol=1e-4, atol=1e-4
    )


def test_layers_of_more_bits_take_shorter_steps(rounded, runs):
    """Adam's first step is as long as the rate: a layer's gains and biases move by that, and a quarter as far with each bit more."""
    student = with_tuned_layers(rounded)
    found = {path: layer.precision.weights for path, *_, layer in iterate_quantized(rounded)}
    assert {4, 8} <= set(found.values())
    assert paces(student) == {path: {4: 1.0, 8: 1 / 256}[bits] for path, bits in found.items()}
    tuner, start = Tuner(1000, 1e-3), Tuned.start(rounded)
    state = tuner.optimizer.init(start)
    before = jax.device_get(start)
    after, *_ = tuner.step(start, state, student, runs.moments(np.array([1, 4])))
    for path, bits in found.items():
        for part, leaf in (("gain", "scale"), ("bias", "bias")):
            name = f"{path}.{leaf}"
            if name in getattr(before, part):  # a joined layer's bias is its first half's
                moved = np.abs(np.asarray(getattr(after, part)[name] - getattr(before, part)[name]))
                assert moved.max() == pytest.approx(1e-3 * 4.0 ** (4 - bits), rel=1e-3), name


class Killed(BaseException):
    """What a kill -9 leaves behind."""


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    rounded, runs, tuned, tmp_path, monkeypatch
):
    step, done = Tuner.step, []

    def dies(*arguments):
        done.append(1)
        if len(done) == 5:
            raise Killed
        return step(*arguments)

    store = TuningStore(tmp_path / "tuning.npz")
    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "step", dies)
        patch.setattr("qsjax.calibration.tuning_store._SHARE", 1e9)  # stored at every step
        with pytest.raises(Killed):
            tune(rounded, runs, METHOD, store=store)
    assert store._path.exists()
    left = []
    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "step", lambda *arguments: left.append(1) or step(*arguments))
        leaves, curve = tune(rounded, runs, METHOD, store=TuningStore(store._path))
    assert len(left) == STEPS - 4
    assert curve == tuned[1]
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, tuned[0][name], err_msg=name)


def test_a_checkpoint_is_tuned_as_the_module_is(
    checkpoint, rounded, runs, tuned, tmp_path, monkeypatch
):
    """Killed when its blocks are done and again while the tuned ones are written, it ends with the same bits."""

    def calibrated():
        return calibrate_checkpoint(
            checkpoint, tmp_path / "w4a8", lambda _: Gathered(random_samples(), runs), RECIPE, METHOD,
            described={}, dtype=jnp.float32, progress=False,
        )  # fmt: skip

    write, done = CheckpointWriter.write_item, []

    def dies(self, component, item, leaves):
        done.append(1)
        if len(done) == 3:
            raise Killed
        write(self, component, item, leaves)

    for killed in ((Tuner, "step", raises_killed), (CheckpointWriter, "write_item", dies)):
        with monkeypatch.context() as patch:
            patch.setattr(*killed)
            with pytest.raises(Killed):
                calibrated()
        assert not (tmp_path / "w4a8").exists()
    manifest, _ = calibrated()
    stored = manifest.component("dit")
    assert stored.clipped
    assert stored.calibration["tuning"]["loss"] == tuned[1]
    assert [path.name for path in tmp_path.iterdir()] == ["w4a8"]
    expected = parameters(rounded) | tuned[0]
    for name, value in parameters(load_dit(tmp_path / "w4a8", dtype=jnp.float32)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert set(manifest.components) == set(Manifest.read(checkpoint).components)


def raises_killed(*_):
    raise Killed
