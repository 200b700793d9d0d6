"""The refiner's rounding: Gram matrices of its layers' inputs, and less error than rounding to nearest."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from calibration.calibration_models import RECIPE, random_dit, random_samples

from qsjax.calibration import METHODS
from qsjax.calibration.module import ends_leaves
from qsjax.calibration.refiner import _grams, rounded_refiner
from qsjax.dit.refiner import TokenRefiner
from qsjax.quant import Precision

THREE_BITS = replace(RECIPE, refiner=Precision(weights=3))


@pytest.fixture(scope="module")
def dit():
    return random_dit()


def test_grams_are_those_of_valid_text(dit):
    samples = random_samples(1, length=5)
    text, mask = jnp.asarray(samples.text), jnp.asarray([[True, True, True, False, False]])
    grams = _grams(dit.refiner, text, mask, jnp.asarray(samples.timestep))
    there = samples.text[0, :3]
    np.testing.assert_allclose(grams["proj_in"], there.T @ there, rtol=1e-5, atol=1e-5)
    layers = {"proj_in", *(f"{e}_embed.fc{n}" for e in ("time", "text") for n in (1, 2))}
    for number in range(dit.config.num_refiner_blocks):
        names = ("qkv", "proj", "fc1", "fc2", "modulation")
        layers |= {f"blocks.{number}.{name}" for name in names}
    assert set(grams) == layers
    # A second block sees what the first has made of it.
    _, conditioning, _ = dit.refiner.embed(text, mask, jnp.asarray(samples.timestep))
    conditioned = np.asarray(conditioning[0])
    for number in range(dit.config.num_refiner_blocks):
        np.testing.assert_allclose(
            grams[f"blocks.{number}.modulation"], np.outer(conditioned, conditioned), rtol=1e-4, atol=1e-4
        )  # fmt: skip
    assert not np.allclose(grams["blocks.0.qkv"], grams["blocks.1.qkv"], rtol=0.1)


def test_error_feedback_beats_nearest_in_every_layer(dit):
    """By the error of the layer's outputs, tr(E^T X^T X E), on other text than it was rounded for."""
    samples, others = random_samples(8), random_samples(8, seed=1)
    rounded = rounded_refiner(dit.refiner, samples, THREE_BITS, METHODS["gptq"])
    total: dict = {}
    for index in range(8):
        row = slice(index, index + 1)
        found = _grams(dit.refiner, *map(jnp.asarray, (others.text[row], others.mask[row], others.timestep[row])))  # fmt: skip
        total = {name: gram + total.get(name, 0) for name, gram in found.items()}
    assert rounded.keys() == {f"refiner.{name}" for name in total}

    def error(kernel, name, gram):
        distance = kernel - exact_kernel(dit.refiner, name)
        return float(np.einsum("kn,kl,ln->", distance, gram, distance))

    plain = rounded_refiner(dit.refiner, samples, THREE_BITS, METHODS["rtn"])
    assert plain == {}
    nearest = ends_leaves(dit, THREE_BITS, plain)
    assert nearest.keys() == ends_leaves(dit, THREE_BITS, rounded).keys()
    ratios = []
    for name, gram in total.items():
        exact = exact_kernel(dit.refiner, name)
        scale = np.abs(exact).max(axis=0) / 3
        to_nearest = np.clip(np.round(exact / scale), -4, 3) * scale
        layer = rounded[f"refiner.{name}"]
        ratios.append(error(layer.kernel(), name, gram) / error(to_nearest, name, gram))
    assert np.mean(ratios) < 0.8, ratios


def exact_kernel(refiner: TokenRefiner, name: str) -> np.ndarray:
    module: object = refiner
    parts = name.split(".")
    for part in parts:
        module = module if part.isdecimal() else getattr(module, part)
    kernel = np.asarray(module.kernel.get_value())
    return kernel[int(parts[1])] if parts[0] == "blocks" else kernel
