"""Scores from int8 queries and keys, at twice the rate of the matrix unit; keys are smoothed first (SageAttention, arXiv:2410.02367).

Keys of a video model share a large mean, which would take up most of int8's range. Without it the scores of a query all
fall by the same number, which a softmax does not see and a log-sum-exp gets back.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

from pallas_kernels import absmax

SCORES = ("float", "int8")


class Int8Scales(NamedTuple):
    """What each row of int8 queries and keys is multiplied by."""

    q: Array  # float32 [B, H, Q]
    k: Array  # float32 [B, H, L]


def quantize(
    q: Float[Array, "B Q H D"], k: Float[Array, "B L H D"], kv_valid: Bool[Array, "B L"]
) -> tuple[Int8[Array, "B Q H D"], Int8[Array, "B L H D"], Int8Scales, Float[Array, "B H Q"]]:
    """Int8 rows of queries, and of keys less the mean of the valid ones.

    Returns:
        Queries, keys, their scales, and the product of each query with the mean that was taken away.
    """
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    seen = kv_valid[..., None, None].astype(jnp.float32)
    mean = (k * seen).sum(axis=1, keepdims=True)
    mean = mean / jnp.maximum(seen.sum(axis=1, keepdims=True), 1.0)
    (q8, q_scale), (k8, k_scale) = _rows(q), _rows((k - mean) * seen)
    return q8, k8, Int8Scales(q_scale, k_scale), jnp.einsum("bqhd,bohd->bhq", q, mean)


def dequantize(
    q: Int8[Array, "B Q H D"], k: Int8[Array, "B L H D"], scales: Int8Scales
) -> tuple[Float[Array, "B Q H D"], Float[Array, "B L H D"]]:
    """Float32 queries and keys, for implementations without int8 products."""
    wide = (
        x.astype(jnp.float32) * scale.swapaxes(1, 2)[..., None]
        for x, scale in zip((q, k), scales, strict=True)
    )
    return next(wide), next(wide)


def _rows(x: Float[Array, "B L H D"]) -> tuple[Int8[Array, "B L H D"], Float[Array, "B H L"]]:
    integers, scale = absmax.quantize(x, absmax.limit(8))
    return integers, scale.swapaxes(1, 2)
