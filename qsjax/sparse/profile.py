"""Choose the better of two token orders for each head: Sparse VideoGen's online profiling (arXiv:2502.01776, algorithm 1).

For some rows, spread over all frames, attention over all keys is compared with attention over the keys of each order's lists;
the order with the smaller error wins. Unlike in the released code, the lists are those that will be executed, padding is left
out, and the rows are the same in every call.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qsjax.sparse.layout import Layout

_MASKED = -1e30
_SMALLEST = 1e-30


def profile_rows(tokens: int, count: int) -> np.ndarray:
    """Rows to profile, int32: a random one from each of `count` equal parts of the video, the same in every call."""
    count = min(count, tokens)
    edges = np.arange(count + 1) * tokens // count
    random = np.random.default_rng(0)
    return random.integers(edges[:-1], edges[1:], dtype=np.int32)


def seen_keys(layout: Layout, seen: Bool[np.ndarray, "Q K"], rows: np.ndarray) -> np.ndarray:
    """The video keys, in the model's order, that each of the rows sees under a block map, bool [rows, N]."""
    slots = token_slots(layout)
    return seen[slots[rows] // layout.block_q][:, slots // layout.block_kv]


def token_slots(layout: Layout) -> np.ndarray:
    """The slot of every token of the video, int64 [N]."""
    slots = np.empty(layout.tokens, np.int64)
    slots[layout.order[layout.valid]] = np.flatnonzero(layout.valid)
    return slots


def nearest_order(
    q: Float[Array, "B R H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    keys: Sequence[Bool[np.ndarray, "R N"]],
) -> Bool[Array, "B H"]:
    """For every head, whether the second of two sets of keys gives a smaller squared error than the first.

    Args:
        q: queries of the profiled rows.
        k, v: all keys and values, video before text.
        kv_valid: which keys are not padding.
        keys: for each order, the video keys that every row sees; text is always seen.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(q.shape[-1] ** -0.5)
    text, valid = k.shape[2] - keys[0].shape[1], kv_valid[:, None, None]
    scores = jnp.where(valid, scores, _MASKED)
    # One exponential serves both sets. It underflows for a set whose best score is 80 below the overall best, but such a set
    # lacks nearly all of the attention mass anyway.
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))

    def over(kept: Array) -> Array:
        total = jnp.maximum(kept.sum(axis=-1, keepdims=True), _SMALLEST)
        return jnp.matmul(kept, v.astype(jnp.float32)) / total

    exact = over(weights)
    errors = []
    for video_keys in keys:
        seen = jnp.asarray(np.pad(video_keys, ((0, 0), (0, text)), constant_values=True))
        listed = over(jnp.where(seen[None, None], weights, 0.0))
        errors.append(jnp.square(listed - exact).mean(axis=(2, 3)))
    return errors[1] < errors[0]
