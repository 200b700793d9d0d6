"""Attention as calibration needs it: differentiable in bounded memory, and summarized without the whole map.

A map [H, L, L] of a 720p video would have 340 billion entries. Its pooled form, some of its rows and the sums of its columns
are made from queries and keys directly (QuantSparse, section 3.2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qsjax.dit.attention import key_bias, masked_attention

_SCORE_BYTES = 256 * 2**20


def attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    state: object,
) -> tuple[Float[Array, "B L H D"], tuple[Array, Array]]:
    """Dense attention for the DiT's slot, which returns queries and keys as its state.

    Scores are recomputed in the backward pass, some queries at a time.
    """
    del state
    bias = key_bias(kv_valid)[:, None, None]
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    @jax.checkpoint
    def attend(queries: Array) -> Array:
        return masked_attention(queries, keys, values, bias)

    parts = _chunks(q).transpose(0, 1, 3, 2, 4)
    out = attend(parts[0])[None] if len(parts) == 1 else jax.lax.map(attend, parts)
    out = out.transpose(1, 0, 3, 2, 4).reshape(len(q), -1, *q.shape[2:])
    return out[:, : q.shape[1]], (q, k)


def saliency(
    q: Float[Array, "B L H D"], k: Float[Array, "B L H D"], kv_valid: Bool[Array, "B L"]
) -> Float[Array, "B L"]:
    """The attention that each key gets from all valid queries and heads; some queries at a time, O(L) memory."""
    bias, keys = key_bias(kv_valid)[:, None, None], k.transpose(0, 2, 1, 3)

    def add_received(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        queries, counts = part
        weights = _softmax(queries.transpose(0, 2, 1, 3), keys, bias)
        received = jnp.einsum("bhqk,bqxy->bk", weights, counts)
        return total + received, None

    zero = jnp.zeros(kv_valid.shape, jnp.float32)
    chunks = _chunks(q)
    rows = chunks.shape[2]
    asking = _chunks(kv_valid[..., None, None].astype(jnp.float32), rows)
    return jax.lax.scan(add_received, zero, (chunks, asking))[0]


def attention_rows(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    rows: Int[Array, "B R"],
) -> Float[Array, "B H R L"]:
    """softmax(q[rows] k^T / sqrt(D)): the attention of some tokens over all valid keys, float32."""
    chosen = jnp.take_along_axis(q, rows[:, :, None, None], axis=1)
    bias = key_bias(kv_valid)[:, None, None]
    return _softmax(chosen.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3), bias)


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
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * jnp.float32(q.shape[-1] ** -0.5) + bias, axis=-1)


def _chunks(x: Array, rows: int | None = None) -> Array:
    """[B, L, H, D] -> [chunks, B, rows, H, D], padded with zeros; rows such that their scores stay small."""
    batch, length, heads, size = x.shape
    if rows is None:
        fitting = max(1, _SCORE_BYTES // (4 * batch * heads * length))
        rows = -(-length // -(-length // fitting))
    count = -(-length // rows)
    x = jnp.pad(x, ((0, 0), (0, count * rows - length), (0, 0), (0, 0)))
    return x.reshape(batch, count, rows, heads, size).transpose(1, 0, 2, 3, 4)
