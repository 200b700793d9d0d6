"""The meaning of the operation: dense attention in float32 under a mask."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.block_sparse_attention.cache import EMPTY, Cache
from pallas_kernels.block_sparse_attention.scores import Int8Scales, dequantize


def attend(
    q: Shaped[Array, "B Q H D"],
    k: Shaped[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    blocks: BlockLists,
    cache: Cache | None,
    *,
    scale: float,
    scales: Int8Scales | None = None,
) -> tuple[Float[Array, "B Q H D"], Float[Array, "B H Q"]]:
    """Output in v's dtype, and the log-sum-exp of the listed keys; 0 and `EMPTY` where no key is listed."""
    dtype = v.dtype
    if scales is not None:
        q, k = dequantize(q, k, scales)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    rows = jnp.arange(q.shape[1]) // blocks.block_q
    columns = jnp.arange(k.shape[1]) // blocks.block_kv
    seen = blocks.block_map()[:, :, rows][:, :, :, columns] & kv_valid[:, None, None]
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") * scale
    scores = jnp.where(seen, scores, -jnp.inf)
    any_seen = seen.any(axis=-1)
    m = jnp.where(any_seen, scores.max(axis=-1), 0.0)
    p = jnp.exp(scores - m[..., None])
    l = p.sum(axis=-1)
    p = p / jnp.where(any_seen, l, 1.0)[..., None]
    out = jnp.einsum("bhqk,bkhd->bqhd", p, v, precision="highest")
    lse = jnp.where(any_seen, m + jnp.log(jnp.where(any_seen, l, 1.0)), EMPTY)
    return (out if cache is None else cache.apply(out, lse)).astype(dtype), lse
