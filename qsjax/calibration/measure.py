"""How far a block is from its float original, over all samples."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from qsjax.calibration.blocks import Leaves
from qsjax.calibration.inputs import Inputs
from qsjax.calibration.programs import Figures, Programs, Sample
from qsjax.calibration.variables import Learned, Starts


def measure(
    programs: Programs,
    learned: Learned,
    starts: Starts,
    leaves: Leaves,
    inputs: Inputs,
    rows: np.ndarray,
    kernels: Mapping[str, jax.Array] = MappingProxyType({}),
) -> Figures:
    """Mean terms over all samples, on float inputs; `kernels` were rounded already."""
    state, ones = programs.optimizer.init(learned), jnp.ones(3, jnp.float32)

    def terms(sample: Sample) -> Figures:
        if kernels or not programs.method.learns:
            return programs.measure(learned, leaves, starts, sample, inputs.shared, dict(kernels))
        # The training step is compiled already; its update is discarded.
        return programs.step(learned, state, leaves, starts, sample, inputs.shared, ones)[2]

    samples = [terms(inputs.sample(i, rows, mixed=True)) for i in range(len(inputs.tokens))]
    return Figures(*(float(np.mean(jax.device_get(term))) for term in zip(*samples, strict=True)))


def signal_to_noise(
    programs: Programs,
    learned: Learned,
    starts: Starts,
    leaves: Leaves,
    inputs: Inputs,
    kernels: Mapping[str, jax.Array] = MappingProxyType({}),
) -> dict[str, float]:
    """Layer -> signal over quantization noise of its output on float inputs, decibels, over all samples."""
    sums: dict[str, np.ndarray] = {}
    for index in range(len(inputs.tokens)):
        sample = inputs.sample(index, None, mixed=True)
        layers = programs.compare_layers(
            learned, leaves, starts, sample, inputs.shared, dict(kernels)
        )
        for layer, pair in layers.items():
            sums[layer] = sums.get(layer, np.zeros(2)) + np.asarray(pair, np.float64)
    return {
        layer: round(float(10 * np.log10(signal / max(noise, 1e-30))), 2)
        for layer, (signal, noise) in sums.items()
    }
