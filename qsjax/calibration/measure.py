"""How far a block is from its float original, over all samples."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np

from qsjax.calibration.blocks import Leaves
from qsjax.calibration.inputs import Inputs
from qsjax.calibration.programs import Figures, Programs
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
    samples = [
        programs.measure(
            learned,
            leaves,
            starts,
            inputs.sample(index, rows, mixed=True),
            inputs.shared,
            dict(kernels),
        )
        for index in range(len(inputs.tokens))
    ]
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
        layer: round(float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))), 2)
        for layer, (signal, noise) in sums.items()
    }
