"""Lists that depend on the tokens: the blocks of keys whose mean scores best with the mean of a block of queries.

As in SpargeAttention (arXiv:2502.18137), Jenga and VSA: means of blocks of queries are scored against means of blocks of keys, which
costs 1 / (block_q block_kv) of attention. Each row then takes a fixed number of the best blocks (topk), or the best until they reach
a share of the softmax (topp).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pallas_kernels import BlockLists
from qsjax.sparse.layout import Layout

_FORCED = 1e30
_NEVER = -1e30


def pooled_scores(
    q: Float[Array, "B H N D"], k: Float[Array, "B H N D"], layout: Layout
) -> Float[Array, "B H Q K"]:
    """Scaled dot products of block means, float32. Means leave out padding; blocks of padding alone are never chosen.

    Args:
        q, k: the video's tokens in the model's order.
        layout: the order in which blocks are cut.
    """
    some = np.any(layout.kv_valid.reshape(layout.kv_blocks, -1), axis=1)
    batch, heads, *rest = q.shape
    q, k = (x.reshape(batch * heads, *rest) for x in (q, k))
    q = _means(layout.arrange(q), layout.valid, layout.block_q)
    k = _means(layout.arrange(k, layout.kv_slots), layout.kv_valid, layout.block_kv)
    q, k = (x.reshape(batch, heads, *x.shape[1:]) for x in (q, k))
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k) * jnp.float32(q.shape[-1] ** -0.5)
    return jnp.where(jnp.asarray(some)[None, None, None], scores, _NEVER)


def best(
    scores: Float[Array, "B H Q K"], count: int, forced: Bool[Array, "#Q K"]
) -> Bool[Array, "B H Q K"]:
    """The `count` best blocks of every row, always including the forced blocks.

    Of equal scores, the smaller index wins.
    """
    count = min(count, scores.shape[-1])
    raised = jnp.where(forced[None, None], _FORCED, scores)
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
        forced: blocks that are in the lists in any case.
        sizes: number of valid tokens in each block of keys, which weights its exponential.
    """
    longest = min(longest, scores.shape[-1])
    always = forced[None, None]
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


def _means(
    x: Float[Array, "N S D"], valid: Bool[np.ndarray, " S"], block: int
) -> Float[Array, "N blocks D"]:
    keep = jnp.asarray(valid, jnp.float32)[None, :, None]
    parts = (x.astype(jnp.float32) * keep).reshape(len(x), -1, block, x.shape[-1])
    count = keep.reshape(1, -1, block, 1).sum(axis=2)
    return parts.sum(axis=2) / jnp.maximum(count, 1)
