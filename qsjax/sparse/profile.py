"""Which of two orders suits a head: Sparse VideoGen's online profiling (arXiv:2502.01776, algorithm 1).

For some rows, spread over all frames, attention over all keys is compared with attention over the keys that either list leaves,
and the nearer one wins. The lists are those that will be executed, padding takes no part, and rows are the same in every call:
the released code differs in all three.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qsjax.sparse.layout import Layout

_MASKED = -1e30
_SMALLEST = 1e-30


def profile_rows(tokens: int, count: int) -> np.ndarray:
    """Rows to look at, int32: one, at a random place, of each of `count` equal parts of the video."""
    count = min(count, tokens)
    edges = np.arange(count + 1) * tokens // count
    random = np.random.default_rng(0)
    return random.integers(edges[:-1], edges[1:], dtype=np.int32)


def seen_keys(layout: Layout, seen: Bool[np.ndarray, "Q K"], rows: np.ndarray) -> np.ndarray:
    """The video keys, in the model's order, that a map of blocks leaves to some rows, bool [rows, N]."""
    slots = np.empty(layout.tokens, np.int64)
    slots[layout.order[layout.valid]] = np.flatnonzero(layout.valid)
    blocks = slots // layout.block
    return seen[blocks[rows]][:, blocks]


def nearest_order(
    q: Float[Array, "B R H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    keys: Sequence[Bool[np.ndarray, "R N"]],
) -> Bool[Array, "B H"]:
    """Whether the second of two sets of keys gives a smaller squared error than the first, for every head.

    Args:
        q: queries of the rows.
        k, v: all keys, video before text.
        kv_valid: those that are there.
        keys: for each order, video keys that every row sees; text is seen in any case.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(q.shape[-1] ** -0.5)
    text, valid = k.shape[2] - keys[0].shape[1], kv_valid[:, None, None]
    scores = jnp.where(valid, scores, _MASKED)
    # One exponential serves all sets: what it loses of a set whose best key is 80 below the best of all, that set lacks anyway.
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))

    def over(kept: Array) -> Array:
        total = jnp.maximum(kept.sum(axis=-1, keepdims=True), _SMALLEST)
        return jnp.matmul(kept, v.astype(jnp.float32)) / total

    exact = over(weights)
    errors = []
    for one in keys:
        seen = jnp.asarray(np.pad(one, ((0, 0), (0, text)), constant_values=True))
        listed = over(jnp.where(seen[None, None], weights, 0.0))
        errors.append(jnp.square(listed - exact).mean(axis=(2, 3)))
    return errors[1] < errors[0]
