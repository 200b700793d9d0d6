"""The flow-match Euler schedule of HunyuanVideo."""

import numpy as np

from qsjax.errors import InputError
from qsjax.settings.plan import SHIFT


def sigmas(steps: int, shift: float = SHIFT) -> np.ndarray:
    """Noise levels from 1 (pure noise) down to 0.

    `s_i = 1 - i / steps`, `sigma = shift s / (1 + (shift - 1) s)`, then a final 0: computed in float32 in
    this order, which makes it equal to diffusers' FlowMatchEulerDiscreteScheduler to the last bit.

    Args:
        steps: number of model evaluations.
        shift: larger values spend more steps at high noise; 7 for HunyuanVideo, less at low resolution.

    Returns:
        float32 [steps + 1]. The model's timestep is 1000 sigma.

    Raises:
        InputError: no steps, or a shift that is not positive.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: at least 1 is needed")
    if not shift > 0:
        raise InputError(f"shift={shift}: must be positive; HunyuanVideo uses {SHIFT}")
    levels = np.linspace(1.0, 0.0, steps + 1)[:-1].astype(np.float32)
    factor = np.float32(shift)
    shifted = factor * levels / (np.float32(1) + np.float32(shift - 1) * levels)
    return np.append(shifted, np.float32(0))


def timesteps(sigma: np.ndarray) -> np.ndarray:
    """The model's timestep input: 1000 sigma, float32, not rounded; the final 0 is never evaluated."""
    return sigma[:-1] * np.float32(1000)
