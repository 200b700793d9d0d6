"""Lists that depend on the tokens: the blocks of keys whose mean scores best with the mean of a block of queries.

As in SpargeAttention (arXiv:2502.18137), Jenga and VSA: means of blocks of queries are scored against means of blocks of keys, which
costs 1 / (block_q block_kv) of attention. Each row then takes a fixed number of the best blocks (topk), or the best until they reach a share of the softmax (topp).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pallas_kernels import BlockLists
from qsjax.sparse.masks import own

_FORCED = 1e30
_NEVER = -1e30


def pooled_scores(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S H D"],
    valid: Bool[Array, " S"],
    block_q: int,
    block_kv: int,
) -> Float[Array, "B H Q K"]:
    """Scaled dot products of block means, float32. Means leave out padding; blocks of padding alone are never chosen."""
    q, k = _means(q, valid, block_q), _means(k, valid, block_kv)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * jnp.float32(q.shape[-1] ** -0.5)
    some = valid.reshape(-1, block_kv).any(axis=1)
    return jnp.where(some[None, None, None], scores, _NEVER)


def best(
    scores: Float[Array, "B H Q K"], count: int, forced: Bool[Array, "#Q K"]
) -> Bool[Array, "B H Q K"]:
    """The `count` best blocks of every row, always including the forced blocks and the row's own blocks.

    Of equal scores, the smaller index wins.
    """
    count = min(count, scores.shape[-1])
    raised = jnp.where(_with_own(forced, scores), _FORCED, scores)
    _, chosen = jax.lax.top_k(raised, count)
    return jax.nn.one_hot(chosen, scores.shape[-1], dtype=jnp.bool_).any(axis=-2)


def share(
    scores: Float[Array, "B H Q K"],
    mass: float,
    longest: int,
    forced: Bool[Array, "#Q K"],
    sizes: Float[Array, " K"],
) -> Bool[Array, "B H Q K"]:
    """The best blocks of every row until they hold a share of at least `mass` of the pooled softmax; at most `longest` blocks.

    Args:
        scores: the result of `pooled_scores`.
        mass: share to reach, up to 1.
        longest: largest length of a list, forced blocks included.
        forced: blocks that are in every list; a row's own blocks always are.
        sizes: number of valid tokens in each block of keys, which weights its exponential.
    """
    longest = min(longest, scores.shape[-1])
    always = _with_own(forced, scores)
    weights = jax.nn.softmax(scores, axis=-1) * sizes[None, None, None]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    ranked, chosen = jax.lax.top_k(jnp.where(always, weights + 2, weights), longest)
    ranked = jnp.where(ranked >= 2, ranked - 2, ranked)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    hits = jax.nn.one_hot(chosen, scores.shape[-1], dtype=jnp.bool_)
    return (hits & (before < mass)[..., None]).any(axis=-2) | always


def lists_of(
    seen: Bool[Array | np.ndarray, "B H Q K"],
    text_blocks: int,
    *,
    block_q: int,
    block_kv: int,
    longest: int | None = None,
) -> BlockLists:
    """Block lists from a map of video blocks; all text blocks are added to each list.

    Args:
        seen: map of video blocks, bool [B or 1, H or 1, Q, K].
        text_blocks: number of text blocks.
        block_q: queries in a block.
        block_kv: keys in a block.
        longest: number of video blocks that a list has room for; None takes the longest row, or all blocks if the map is traced.
    """
    xp = np if isinstance(seen, np.ndarray) else jnp
    text = xp.ones((*seen.shape[:-1], text_blocks), bool)
    return BlockLists.from_block_map(
        xp.concatenate([seen, text], axis=-1),
        block_q=block_q,
        block_kv=block_kv,
        longest=None if longest is None else longest + text_blocks,
    )


def _with_own(forced: Array, scores: Array) -> Bool[Array, "1 1 Q K"]:
    return (forced | own(*scores.shape[-2:]))[None, None]


def _means(x: Array, valid: Array, block: int) -> Float[Array, "B N H D"]:
    keep = valid.astype(jnp.float32)[None, :, None, None]
    parts = (x.astype(jnp.float32) * keep).reshape(x.shape[0], -1, block, *x.shape[2:])
    count = keep.reshape(1, -1, block, 1, 1).sum(axis=2)
    return parts.sum(axis=2) / jnp.maximum(count, 1)
