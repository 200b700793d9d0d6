"""Channel-wise smoothing (SmoothQuant): activations are divided by c, the rows of the weights multiplied by it."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_FLOOR = 1e-5


@partial(jax.jit, static_argnames="alpha")
def smoothquant(
    activation_peak: Float[Array, " K"], kernel: Float[Array, "K N"], alpha: float
) -> Float[Array, " K"]:
    """c = a^alpha / w^(1 - alpha), where a and w are the largest absolute values of an input channel.

    Args:
        activation_peak: a, over calibration tokens.
        kernel: [in, out].
        alpha: how much of the difficulty moves to the weights; 0.5 is SmoothQuant's, ViDiT-Q uses less at 4 bits.

    Returns:
        Float32, at least 1e-5, scaled so that its geometric mean is 1, which changes nothing but keeps numbers moderate.
    """
    a = jnp.maximum(activation_peak.astype(jnp.float32), _FLOOR)
    w = jnp.maximum(jnp.abs(kernel.astype(jnp.float32)).max(axis=1), _FLOOR)
    log_c = alpha * jnp.log(a) - (1 - alpha) * jnp.log(w)
    return jnp.maximum(jnp.exp(log_c - log_c.mean()), _FLOOR)


@partial(jax.jit, static_argnames="first")
def absorb(
    kernel: Float[Array, "C M"], bias: Float[Array, " M"], smoothing: Float[Array, " D"], first: int
) -> tuple[Float[Array, "C M"], Float[Array, " M"]]:
    """Divide a modulated norm by c in the linear that makes its shift and scale: then it costs nothing at run time.

    ((1 + s) LN(x) + t) / c = (1 + s') LN(x) + t' with t' = t / c and s' = (s + 1) / c - 1.

    Args:
        kernel: of the modulation linear, whose outputs are vectors of D channels.
        bias: its bias.
        smoothing: c.
        first: number of the vector t; the one after it is s.
    """
    width = len(smoothing)
    shift, scale = (slice(k * width, (k + 1) * width) for k in (first, first + 1))
    inverse = (1 / smoothing).astype(jnp.float32)
    gain = jnp.ones(kernel.shape[1], jnp.float32).at[shift].set(inverse).at[scale].set(inverse)
    moved = jnp.zeros(kernel.shape[1], jnp.float32).at[scale].set(inverse - 1)
    return kernel.astype(jnp.float32) * gain[None], bias.astype(jnp.float32) * gain + moved
