"""Sinusoidal features of a number, and the two-layer embedder of time, guidance and pooled text."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from qsjax.dit.slot import dtype_of

FREQUENCIES = 128
_MAX_PERIOD = 10_000.0


def sinusoid_frequencies() -> np.ndarray:
    """The 128 angular frequencies exp(-ln(10000) k / 128), float32, correctly rounded from a float32 exponent.

    At guidance 6000 one unit in the last place of a frequency turns the angle by 4e-4, so this is a table
    made on the host, never a device's exponential. torch's own CPU exponential differs in two entries.
    """
    steps = np.arange(FREQUENCIES, dtype=np.float32)
    exponent = -np.float32(np.log(_MAX_PERIOD)) * steps / np.float32(FREQUENCIES)
    return np.exp(exponent.astype(np.float64)).astype(np.float32)


def sinusoid(values: Float[Array, " B"]) -> Float[Array, "B F"]:
    """Sinusoidal features of a float32 value: all cosines, then all sines, always float32."""
    angles = values.astype(jnp.float32)[:, None] * sinusoid_frequencies()[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Embedder(nnx.Module):
    """Two linear layers with a SiLU between them."""

    def __init__(self, inputs: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(inputs, width, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B N"]) -> Float[Array, "B D"]:
        """Embed in the dtype of the weights."""
        return self.fc2(jax.nn.silu(self.fc1(x.astype(dtype_of(self.fc1)))))
