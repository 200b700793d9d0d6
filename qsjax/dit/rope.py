"""Rotary position embedding over (time, height, width), as tables made on the host.

Tables are float32 constants: a device's own power and cosine differ between backends by more than
the last bit, and a last bit of frequency is a visible angle at large positions.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
        Two float32 arrays [L, head_dim / 2], tokens in (time, height, width) order, width fastest;
        one column per rotated pair of channels.
    """
    positions = np.indices(grid, dtype=np.float32).reshape(3, -1)
    angles = np.concatenate(
        [
            np.outer(position, axis_frequencies(dim, config.rope_theta))
            for position, dim in zip(positions, config.rope_axes_dim, strict=True)
        ],
        axis=1,
    ).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def apply_rope(
    x: Float[Array, "B L H D"], cos: Float[Array, "L D2"], sin: Float[Array, "L D2"]
) -> Float[Array, "B L H D"]:
    """Rotate adjacent channel pairs (2k, 2k+1) in float32 and return the input's dtype.

    HunyuanVideo interleaves the pair, unlike LLaMA, which rotates halves.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
