"""The Gaussian that the encoder gives for a video."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32


class Moments(NamedTuple):
    """A diagonal Gaussian over latents, float32.

    Attributes:
        mean: [B, C, T, h, w].
        logvar: natural logarithm of the variance, within [-30, 20], same shape.
    """

    mean: Float[Array, "B C T h w"]
    logvar: Float[Array, "B C T h w"]

    def mode(self) -> Float[Array, "B C T h w"]:
        """The most likely latent, not multiplied by the scaling factor."""
        return self.mean

    def sample(self, key: Key[Array, ""] | UInt32[Array, "2"]) -> Float[Array, "B C T h w"]:
        """A random latent, not multiplied by the scaling factor."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise
