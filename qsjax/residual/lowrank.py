"""Low-rank approximation of what changed since the last refresh, by subspace iteration.

QuantSparse keeps rank 16 of the second-order residual [L, H D] of a layer. Its singular directions change slowly: one iteration
that starts from those of the last refresh is as good as a decomposition of the whole matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Factors(NamedTuple):
    """x[b, s, h, d] is approximately the sum over r of u[b, r, s] v[b, h, r, d]; all heads share u.

    Attributes:
        u: factor of the tokens, [B, R, S], in the model's dtype.
        v: factor of the channels, float32 [B, H, R, D], rows orthonormal over (H, D); the next iteration starts from it.
    """

    u: Array
    v: Array


def start(
    batch: int, tokens: int, heads: int, channels: int, rank: int, dtype: DTypeLike
) -> Factors:
    """Factors of zero, with random directions that are the same in every run."""
    directions = np.random.default_rng(0).standard_normal((heads * channels, rank))
    basis, _ = np.linalg.qr(directions)
    v = basis.T.reshape(1, rank, heads, channels).transpose(0, 2, 1, 3)
    v = np.broadcast_to(v, (batch, *v.shape[1:])).astype(np.float32)
    return Factors(jnp.zeros((batch, rank, tokens), dtype), jnp.asarray(v))


def factorize(
    x: Float[Array, "B S H D"], last: Factors, *, passes: int = 2, axis: str | None = None
) -> Factors:
    """An approximation of x that is close to the best of the same rank as `last`.

    Args:
        x: float32.
        last: factors of the last refresh, or of `start`.
        passes: number of multiplications by x x^T; a warm start needs 1, random directions 2 or more.
        axis: mesh axis of devices that share the heads, inside `jax.shard_map`; u is replicated, v is sharded by heads.
    """
    batch, tokens, heads, channels = x.shape
    rank = last.v.shape[2]
    flat = x.reshape(batch, tokens, heads * channels)
    basis = last.v.transpose(0, 1, 3, 2).reshape(batch, heads * channels, rank)

    def times(basis: Array) -> Array:
        product = jnp.matmul(flat, basis)
        return product if axis is None else jax.lax.psum(product, axis)

    for _ in range(passes):
        basis = _orthonormal(jnp.matmul(flat.swapaxes(1, 2), times(basis)), basis, axis)
    u = times(basis).swapaxes(1, 2)
    v = basis.reshape(batch, heads, channels, rank).transpose(0, 1, 3, 2)
    return Factors(u.astype(last.u.dtype), v)


def expanded(factors: Factors) -> Float[Array, "B S H D"]:
    """The product of the factors, float32."""
    return jnp.einsum("brs,bhrd->bshd", factors.u.astype(jnp.float32), factors.v)


def _orthonormal(
    columns: Float[Array, "B N R"], otherwise: Float[Array, "B N R"], axis: str | None
) -> Float[Array, "B N R"]:
    """An orthonormal basis of the columns' span; if all columns are zero, because nothing changed, of `otherwise`."""
    rows = columns.shape[1]
    if axis is not None:
        # A few thousand rows of sixteen numbers: every device decomposes all of them and keeps its own rows.
        columns, otherwise = (
            jax.lax.all_gather(part, axis, axis=1, tiled=True) for part in (columns, otherwise)
        )
    size = jnp.abs(columns).max(axis=(1, 2), keepdims=True)
    scaled = columns / jnp.where(size > 0, size, 1.0)
    basis, _ = jax.vmap(jnp.linalg.qr)(jnp.where(size > 0, scaled, otherwise))
    if axis is None:
        return basis
    return jax.lax.dynamic_slice_in_dim(basis, jax.lax.axis_index(axis) * rows, rows, axis=1)
