"""Attention as calibration needs it: differentiable in bounded memory, and compared without the whole map.

A map [H, L, L] of a 720p video would have 340 billion entries. Its pooled form, some of its rows and the sums of its columns
are made from queries and keys directly (QuantSparse, section 3.2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qsjax.calibration.flash import by_head, flash_attention, scores, tiled
from qsjax.dit.attention import key_bias

_TILE_BYTES = 16 * 2**20
"""Of the rows of one head's map that are held at once."""
QueriesAndKeys = tuple[Array, Array]
"""Heads after their norms and rotary turn, [B, L, H, D] each."""


def attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    state: object,
) -> tuple[Float[Array, "B L H D"], QueriesAndKeys]:
    """Dense attention for the DiT's slot, which returns queries and keys as its state."""
    del state
    return flash_attention(q, k, v, kv_valid), (q, k)


def no_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    state: object,
) -> tuple[Float[Array, "B L H D"], QueriesAndKeys]:
    """The slot for those who want queries and keys only: the values pass."""
    del kv_valid, state
    return v, (q, k)


def saliency(
    q: Float[Array, "B L H D"], k: Float[Array, "B L H D"], kv_valid: Bool[Array, "B L"]
) -> Float[Array, "B L"]:
    """The attention that each key gets from all valid queries and heads; some queries at a time, O(L) memory."""
    batch, length, heads, _ = q.shape
    rows = min(length, _fitting(length))
    bias, asking = (
        jnp.repeat(x, heads, axis=0) for x in (key_bias(kv_valid), kv_valid.astype(jnp.float32))
    )

    def of_head(head: tuple[Array, Array, Array, Array]) -> Array:
        q, k, bias, asking = head

        def add_received(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            q, asking = part
            return total + jnp.matmul(asking, _softmax(q, k, bias[None])), None

        return jax.lax.scan(add_received, jnp.zeros(length, jnp.float32), (q, asking))[0]

    queries, asking = tiled(by_head(q), rows), tiled(asking, rows)
    received = jax.lax.map(of_head, (queries, by_head(k), bias, asking))
    return received.reshape(batch, heads, length).sum(axis=1)


def row_distance(
    one: QueriesAndKeys,
    other: QueriesAndKeys,
    kv_valid: Bool[Array, "B L"],
    rows: Int[Array, "B R"],
) -> Float[Array, ""]:
    """Mean squared difference between the same rows of two maps, softmax(q[rows] k^T / sqrt(D)) over the valid keys, [B, H, R, L].

    The local term of QuantSparse (section 3.2). One head and some rows at a time, made again in the backward pass.

    Args:
        one, other: queries and keys.
        kv_valid: True for tokens that are there.
        rows: which.
    """
    batch, length, heads, _ = one[0].shape
    count = rows.shape[1]
    size = min(count, _fitting(length))
    bias = jnp.repeat(key_bias(kv_valid), heads, axis=0)
    counted = tiled(jnp.ones((1, count), jnp.float32), size)[0]

    def chosen(q: Array) -> Array:
        return tiled(by_head(jnp.take_along_axis(q, rows[:, :, None, None], axis=1)), size)

    @jax.checkpoint
    def of_rows(q: tuple[Array, Array], k: tuple[Array, Array], bias: Array, keep: Array) -> Array:
        maps = [_softmax(*heads, bias[None]) for heads in zip(q, k, strict=True)]
        return (jnp.square(maps[0] - maps[1]) * keep[:, None]).sum()

    def of_head(head: tuple[tuple[Array, Array], tuple[Array, Array], Array]) -> Array:
        q, k, bias = head
        return jax.lax.map(lambda part: of_rows(part[0], k, bias, part[1]), (q, counted)).sum()

    queries, keys = zip(one, other, strict=True)
    given = (tuple(map(chosen, queries)), tuple(map(by_head, keys)), bias)
    return jax.lax.map(of_head, given).sum() / (batch * heads * count * length)


def pooled_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    video: int,
    window: int,
) -> Float[Array, "B H W W"]:
    """The map of queries and keys averaged over windows of tokens, float32.

    Video tokens are pooled `window` at a time, in their order; the last window may be shorter. All valid text tokens are one
    more window: padding takes no part.

    Args:
        q, k: heads after their norms and rotary turn.
        kv_valid: True for tokens that are there.
        video: number of video tokens; text follows them.
        window: s.
    """
    windows = -(-video // window) + 1
    place = jnp.minimum(jnp.arange(q.shape[1]) // window, windows - 2)
    place = jnp.where(jnp.arange(q.shape[1]) < video, place, windows - 1)
    member = (place[None, None, :] == jnp.arange(windows)[None, :, None]) & kv_valid[:, None, :]
    member = member.astype(jnp.float32)
    share = member / jnp.maximum(member.sum(axis=2, keepdims=True), 1)
    q, k = (
        jnp.einsum("bwl,blhd->bhwd", share, x.astype(jnp.float32), precision="highest")
        for x in (q, k)
    )
    return _softmax(q, k, jnp.zeros((1, 1, 1, 1), jnp.float32))


def _softmax(q: Array, k: Array, bias: Array) -> Array:
    return jax.nn.softmax(scores(q, k, bias), axis=-1)


def _fitting(length: int) -> int:
    return max(1, _TILE_BYTES // (4 * length))
