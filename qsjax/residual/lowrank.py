"""The largest singular parts of what changed since the last refresh, by subspace iteration.

QuantSparse keeps rank 16 of the second-order residual [L, H D] of a layer. Its directions change slowly, so that one pass from
those of the last refresh does what a decomposition of the whole matrix would.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Factors(NamedTuple):
    """x [B, S, H, D] is about the sum over r of u[:, r, s] v[:, h, r, d]: tokens are shared by all heads.

    Attributes:
        u: [B, R, S], in the model's dtype.
        v: [B, H, R, D], float32, rows orthonormal over (H, D); where the next iteration starts.
    """

    u: Any
    v: Any


def start(batch: int, tokens: int, heads: int, channels: int, rank: int, dtype: Any) -> Factors:
    """Zero, with random directions: the same in every run."""
    directions = np.random.default_rng(0).standard_normal((heads * channels, rank))
    basis, _ = np.linalg.qr(directions)
    v = basis.T.reshape(1, rank, heads, channels).transpose(0, 2, 1, 3)
    v = np.broadcast_to(v, (batch, *v.shape[1:])).astype(np.float32)
    return Factors(jnp.zeros((batch, rank, tokens), dtype), jnp.asarray(v))


def factorize(
    x: Float[Array, "B S H D"], last: Factors, *, passes: int = 2, axis: str | None = None
) -> Factors:
    """The best approximation of last's rank, or nearly.

    Args:
        x: float32.
        last: of the refresh before, or `start`.
        passes: over x x^T; a warm start needs 1, random directions 2 or more.
        axis: of devices that share the heads, inside `jax.shard_map`; u is everyone's, v has each one's heads.
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
    """The product, float32."""
    return jnp.einsum("brs,bhrd->bshd", factors.u.astype(jnp.float32), factors.v)


def _orthonormal(
    columns: Float[Array, "B N R"], otherwise: Float[Array, "B N R"], axis: str | None
) -> Float[Array, "B N R"]:
    """A basis of the columns' span; where they are zero, since nothing has changed, the former one."""
    rows = columns.shape[1]
    if axis is not None:
        # Some thousand rows of sixteen numbers: everyone does all of it, and keeps its own.
        columns, otherwise = (
            jax.lax.all_gather(part, axis, axis=1, tiled=True) for part in (columns, otherwise)
        )
    size = jnp.abs(columns).max(axis=(1, 2), keepdims=True)
    scaled = columns / jnp.where(size > 0, size, 1.0)
    basis, _ = jax.vmap(jnp.linalg.qr)(jnp.where(size > 0, scaled, otherwise))
    if axis is None:
        return basis
    return jax.lax.dynamic_slice_in_dim(basis, jax.lax.axis_index(axis) * rows, rows, axis=1)
