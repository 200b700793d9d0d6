"""Rounding with error feedback (GPTQ, arXiv:2210.17323), and a search for the clip of each output channel.

Rounding one row of a matrix makes an error in the layer's output. The rows that are not rounded yet are moved to where they
undo as much of it as they can, given how the layer's inputs go together: their Gram matrix X^T X.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import limit
from qsjax.quant.quantizer import fake_weight

DAMPING = 0.01
"""Of the mean of the Gram matrix's diagonal, added to it: GPTQ's."""
BLOCK = 128
"""Rows whose feedback to the rest is one product."""
CLIPS = tuple(np.linspace(1.0, 0.5, 26).tolist())
"""The clips that are tried, from none to half of the largest weight."""


@partial(jax.jit, static_argnames="bits")
def round_with_feedback(
    kernel: Float[Array, "K N"],
    gram: Float[Array, "K K"],
    scale: Float[Array, "G N"],
    bits: int,
) -> Int8[Array, "K N"]:
    """Integers of a matrix, chosen row by row for the least error of x kernel over the inputs that `gram` describes.

    Rows with the largest inputs come first: most of the others can still answer for them. Sums are float32; the damping bounds
    the condition of the matrix, and a test compares with float64.

    Args:
        kernel: [in, out], float32.
        gram: X^T X of the layer's inputs; rows and columns that are all zero are inputs that never come.
        scale: of each output channel, or of each group of input channels.
        bits: of an integer.
    """
    rows, columns = kernel.shape
    group = rows // scale.shape[0]
    order = jnp.argsort(-jnp.diagonal(gram), stable=True)
    count = -(-rows // BLOCK)
    extra = count * BLOCK - rows
    upper = _inverse_factor(gram[order][:, order])
    upper = jax.scipy.linalg.block_diag(upper, jnp.eye(extra, dtype=jnp.float32))
    left = jnp.pad(kernel.astype(jnp.float32)[order], ((0, extra), (0, 0)))
    group_of = jnp.pad(order // group, (0, extra))
    top = limit(bits)

    def block(left: Array, first: Array) -> tuple[Array, Array]:
        here = jax.lax.dynamic_slice_in_dim(left, first, BLOCK)
        factor = jax.lax.dynamic_slice_in_dim(upper, first, BLOCK)
        own = jax.lax.dynamic_slice_in_dim(factor, first, BLOCK, axis=1)
        scales = scale[jax.lax.dynamic_slice_in_dim(group_of, first, BLOCK)]

        def row(n: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            here, integers, errors = state
            rounded = jnp.clip(jnp.round(here[n] * (1 / scales[n])), -top - 1, top)
            error = (here[n] - rounded * scales[n]) / own[n, n]
            # Rows above the diagonal are zero in `own`: what is rounded already stays.
            here = here - own[n][:, None] * error[None]
            return here, integers.at[n].set(rounded.astype(jnp.int8)), errors.at[n].set(error)

        zeros = jnp.zeros((BLOCK, columns))
        start = here, zeros.astype(jnp.int8), zeros
        _, integers, errors = jax.lax.fori_loop(0, BLOCK, row, start)
        return left - jnp.matmul(factor.T, errors, precision="highest"), integers

    _, integers = jax.lax.scan(block, left, jnp.arange(count) * BLOCK)
    integers = integers.reshape(-1, columns)[:rows]
    return jnp.zeros_like(integers).at[order].set(integers)


@partial(jax.jit, static_argnames=("bits", "group"))
def searched_clip(
    kernel: Float[Array, "K N"], gram: Float[Array, "K K"], bits: int, *, group: int = 0
) -> Float[Array, " N"]:
    """The clip of each output channel with the least squared error of its weights, each weighted by the power of its input.

    Args:
        kernel: [in, out], float32.
        gram: X^T X of the layer's inputs; only its diagonal counts.
        bits: of an integer.
        group: input channels that share a scale; 0 for all.
    """
    power = jnp.diagonal(gram)[:, None]

    def error(clip: Array) -> Array:
        rounded = fake_weight(kernel, bits, clip, group=group)
        return (power * jnp.square(kernel - rounded)).sum(axis=0)

    clips = jnp.asarray(CLIPS, jnp.float32)
    return clips[jax.lax.map(error, clips).argmin(axis=0)]


def _inverse_factor(gram: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """The upper triangular U with U^T U = (gram + damping)^-1, without inverting: gram = R R^T with R upper, U = R^-1."""
    mean = jnp.diagonal(gram).mean()
    damped = gram + jnp.eye(len(gram)) * jnp.where(mean > 0, DAMPING * mean, 1.0)
    factor = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(gram)), lower=False)
