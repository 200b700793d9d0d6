"""Lists that depend on the tokens: the blocks of keys whose mean looks best to the mean of a block of queries.

As in SpargeAttention (arXiv:2502.18137), Jenga and VSA: means of blocks are scored against each other, which costs 1 / block^2 of
attention; a row then takes the best so many, or the best until their share of the softmax is reached.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pallas_kernels import BlockLists

_FORCED = 1e30
_NEVER = -1e30


def pooled_scores(
    q: Float[Array, "B S H D"], k: Float[Array, "B S H D"], valid: Bool[Array, " S"], block: int
) -> Float[Array, "B H N N"]:
    """Scaled products of the means of blocks, float32; padding is in no mean, and blocks of nothing else are never chosen."""
    q, k = (_means(x, valid, block) for x in (q, k))
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * jnp.float32(q.shape[-1] ** -0.5)
    some = valid.reshape(-1, block).any(axis=1)
    return jnp.where(some[None, None, None], scores, _NEVER)


def best(
    scores: Float[Array, "B H N N"], count: int, forced: Bool[Array, "#N N"]
) -> Bool[Array, "B H N N"]:
    """The `count` best of every row; what is forced is among them, and a row's own block always is.

    Equal scores are decided by the smaller index.
    """
    count = min(count, scores.shape[-1])
    raised = jnp.where(_with_own(forced, scores), _FORCED, scores)
    _, chosen = jax.lax.top_k(raised, count)
    return jax.nn.one_hot(chosen, scores.shape[-1], dtype=jnp.bool_).any(axis=-2)


def share(
    scores: Float[Array, "B H N N"],
    mass: float,
    longest: int,
    forced: Bool[Array, "#N N"],
    sizes: Float[Array, " N"],
) -> Bool[Array, "B H N N"]:
    """The best of every row until their share of the pooled softmax is at least `mass`, `longest` at most.

    Args:
        scores: of `pooled_scores`.
        mass: share, up to 1.
        longest: room in a list; what is forced counts.
        forced: blocks in every list, with a row's own.
        sizes: valid tokens of each block, which weigh its exponential.
    """
    longest = min(longest, scores.shape[-1])
    held = _with_own(forced, scores)
    weights = jax.nn.softmax(scores, axis=-1) * sizes[None, None, None]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    ranked, chosen = jax.lax.top_k(jnp.where(held, weights + 2, weights), longest)
    ranked = jnp.where(ranked >= 2, ranked - 2, ranked)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    hits = jax.nn.one_hot(chosen, scores.shape[-1], dtype=jnp.bool_)
    return (hits & (before < mass)[..., None]).any(axis=-2) | held


def lists_of(
    seen: Bool[Array | np.ndarray, "B H N N"],
    text_blocks: int,
    *,
    block: int,
    longest: int | None = None,
) -> BlockLists:
    """Lists of a map of video blocks, followed by all blocks of text.

    Args:
        seen: [B or 1, H or 1, N, N].
        text_blocks: their number.
        block: tokens in a block.
        longest: video blocks that a list has room for; None is the longest row, or all where the map is traced.
    """
    xp = np if isinstance(seen, np.ndarray) else jnp
    text = xp.ones((*seen.shape[:-1], text_blocks), bool)
    return BlockLists.from_block_map(
        xp.concatenate([seen, text], axis=-1),
        block_q=block,
        block_kv=block,
        longest=None if longest is None else longest + text_blocks,
    )


def _with_own(forced: Array, scores: Array) -> Bool[Array, "1 1 N N"]:
    own = jnp.eye(scores.shape[-1], dtype=jnp.bool_)
    return (forced | own)[None, None]


def _means(x: Array, valid: Array, block: int) -> Float[Array, "B N H D"]:
    keep = valid.astype(jnp.float32)[None, :, None, None]
    parts = (x.astype(jnp.float32) * keep).reshape(x.shape[0], -1, block, *x.shape[2:])
    count = keep.reshape(1, -1, block, 1, 1).sum(axis=2)
    return parts.sum(axis=2) / jnp.maximum(count, 1)
