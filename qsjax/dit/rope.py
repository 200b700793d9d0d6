"""Rotary position embedding over (time, height, width), as tables made on the host.

Tables are float32 constants: a device's own power and cosine differ between backends by more than
the last bit, and a last bit of frequency is a visible angle at large positions.
"""

from functools import lru_cache

import numpy as np

from qsjax.dit.config import DiTConfig


def axis_frequencies(dim: int, theta: float) -> np.ndarray:
    """Angular frequencies 1 / theta^(2i/dim), i < dim/2, in float32.

    The exponent is rounded to float32 before the power, and the power before its reciprocal: so does
    torch, and the result is then equal to the last bit.
    """
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    power = np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1) / power


@lru_cache(maxsize=8)
def rope_tables(config: DiTConfig, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine for a grid of tokens.

    Args:
        config: gives the channels per axis and theta.
        grid: tokens along (time, height, width).

    Returns:
        Two float32 arrays [L, head_dim], tokens in (time, height, width) order, width fastest; both
        channels of a rotated pair have the same column. A TPU stores half as many columns in no less
        memory.
    """
    positions = np.indices(grid, dtype=np.float32).reshape(3, -1)
    angles = np.concatenate(
        [
            np.outer(position, axis_frequencies(dim, config.rope_theta))
            for position, dim in zip(positions, config.rope_axes_dim, strict=True)
        ],
        axis=1,
    ).astype(np.float64)
    angles = np.repeat(angles, 2, axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
