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

    With gram = U D U^T, U upper with ones on its diagonal, the squared error of the output is the sum over rows k of
    D_k |E_k + sum_{j < k} U_jk E_j|^2, where E is the error of the weights. So the errors made before, weighted by a column of
    U, are added to a row, and the sum is rounded: GPTQ's integers, without its inverse (QuIP, arXiv:2307.13304, theorem 6).

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
    padding = (0, -rows % BLOCK)
    mean = jnp.diagonal(gram).mean()
    damping = jnp.where(mean > 0, DAMPING * mean, 1.0)
    gram = jnp.pad(gram[order][:, order], padding)
    upper = _unit_upper(gram + damping * jnp.eye(len(gram)))
    weights = jnp.pad(kernel.astype(jnp.float32)[order], (padding, (0, 0)))
    group_of = jnp.pad(order // group, padding)
    top = limit(bits)

    def block(errors: Array, first: Array) -> tuple[Array, Array]:
        weight, scales, factor = (
            jax.lax.dynamic_slice_in_dim(weights, first, BLOCK),
            scale[jax.lax.dynamic_slice_in_dim(group_of, first, BLOCK)],
            jax.lax.dynamic_slice_in_dim(upper, first, BLOCK, axis=1),
        )
        own = jax.lax.dynamic_slice_in_dim(factor, first, BLOCK)
        # Errors of rows that are not rounded yet are zero.
        here = weight + jnp.matmul(factor.T, errors, precision="highest")

        def row(n: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            here, integers, made = state
            rounded = jnp.clip(jnp.round(here[n] * (1 / scales[n])), -top - 1, top)
            error = weight[n] - rounded * scales[n]
            here = here + own[n][:, None] * error[None]
            return here, integers.at[n].set(rounded.astype(jnp.int8)), made.at[n].set(error)

        zeros = jnp.zeros((BLOCK, columns))
        start = here, zeros.astype(jnp.int8), zeros
        _, integers, made = jax.lax.fori_loop(0, BLOCK, row, start)
        return jax.lax.dynamic_update_slice_in_dim(errors, made, first, axis=0), integers

    _, integers = jax.lax.scan(block, jnp.zeros_like(weights), _blocks(weights))
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


def _unit_upper(gram: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """U of gram = U D U^T, a block of columns after the other from the last to the first; rows that are all zero stay so.

    One loop, whose parts have one shape: a whole Cholesky factorization compiles for minutes on a TPU, with a program of its own
    for every block of 12,288 rows.
    """

    def block(factor: Array, first: Array) -> tuple[Array, None]:
        columns, done = (
            jax.lax.dynamic_slice_in_dim(gram, first, BLOCK, axis=1),
            jax.lax.dynamic_slice_in_dim(factor, first, BLOCK),
        )
        columns = columns - jnp.matmul(factor, done.T, precision="highest")
        square = jax.lax.dynamic_slice_in_dim(columns, first, BLOCK)
        # A matrix whose rows and columns are reversed has the other triangular factor.
        lower = jnp.linalg.cholesky(square[::-1, ::-1])
        inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(BLOCK), lower=True)[::-1, ::-1]
        columns = jnp.matmul(columns, inverse.T, precision="highest")
        place = jnp.arange(len(gram))[:, None]
        columns = jnp.where(place <= first + jnp.arange(BLOCK)[None], columns, 0)
        return jax.lax.dynamic_update_slice_in_dim(factor, columns, first, axis=1), None

    factor, _ = jax.lax.scan(block, jnp.zeros_like(gram), _blocks(gram)[::-1])
    return factor / jnp.diagonal(factor)[None]


def _blocks(rows: Array) -> Array:
    """The first row of every block."""
    return jnp.arange(0, len(rows), BLOCK)
