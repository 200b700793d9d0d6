"""Plain XLA: one head and one block of queries at a time, a loop over its list, online softmax. Any backend.

Work and memory follow the lists: a block that is not listed is neither read nor multiplied, unless lists hold most of all
blocks. Gradients walk the same
lists again (their scores are computed anew from the saved log-sum-exp), since a loop of traced length has no reverse.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.block_sparse_attention.cache import EMPTY, Cache
from pallas_kernels.block_sparse_attention.scores import Int8Scales, dequantize
from pallas_kernels.block_sparse_attention.softmax import LOWEST_PEAK, key_bias

_QUERIES_AT_ONCE, _KEYS_AT_ONCE = 128, 4096
"""Blocks of so many queries or more take so many keys of their list in one step: XLA:CPU then fuses the whole softmax and
uses its threads, for which smaller products are not worth it."""
_FULL = 0.7
"""All lists are then as long as the longest, which is worth it where they are as full as this on average; and where they hold as
many of all blocks, every row takes all keys where they are and masks some."""


class _Softmax(NamedTuple):
    """An online softmax, so far."""

    peak: Array  # [queries]
    total: Array  # [queries]
    mixed: Array  # [queries, D]


class _Head(NamedTuple):
    """One head of one sample, cut in blocks."""

    q: Array  # [query blocks, block_q, D]
    k: Array  # [key blocks, block_kv, D]
    v: Array  # [key blocks, block_kv, D]
    bias: Array  # float32 [key blocks, block_kv], 0 or EMPTY
    indices: Array  # int32 [query blocks, K]
    counts: Array  # int32 [query blocks]


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
    """Output in v's dtype, and the log-sum-exp of the listed keys; differentiable in q, k, v and the cache."""
    batch, length, heads, size = q.shape
    if scales is not None:
        q, k = dequantize(q, k, scales)

    def cut(x: Array, block: int, count: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, block * count - x.shape[1]), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, count, block, x.shape[-1])

    def shared(x: Array) -> Array:
        return jnp.broadcast_to(x, (batch, heads, *x.shape[2:])).reshape(-1, *x.shape[2:])

    bias = key_bias(kv_valid, blocks.block_kv * blocks.kv_blocks)
    head = _Head(
        q=cut(q, blocks.block_q, blocks.q_blocks),
        k=cut(k, blocks.block_kv, blocks.kv_blocks),
        v=cut(v, blocks.block_kv, blocks.kv_blocks),
        bias=shared(bias.reshape(batch, 1, blocks.kv_blocks, blocks.block_kv)),
        indices=shared(blocks.indices),
        counts=shared(blocks.counts),
    )
    out, lse = _attend(scale, head)
    out = out.reshape(batch, heads, -1, size)[:, :, :length].transpose(0, 2, 1, 3)
    lse = lse.reshape(batch, heads, -1)[:, :, :length]
    return (out if cache is None else cache.apply(out, lse)).astype(v.dtype), lse


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scale: float, heads: _Head) -> tuple[Array, Array]:
    """All rows of all heads in one loop, which reads the blocks of keys where they are."""
    k_blocks, v_blocks, bias_blocks = (
        x.reshape(-1, *x.shape[2:]) for x in (heads.k, heads.v, heads.bias)
    )
    pairs, rows, kv_blocks = *heads.q.shape[:2], heads.k.shape[1]
    first = jnp.arange(pairs, dtype=jnp.int32)[:, None, None] * kv_blocks

    def at_once(q: Array, indices: Array, count: Array) -> _Softmax:
        state, parts = None, max(1, _KEYS_AT_ONCE // heads.k.shape[2])
        for start in range(0, indices.shape[0], parts):
            j = indices[start : start + parts]
            k, v, bias = (x[j] for x in (k_blocks, v_blocks, bias_blocks))
            listed = (start + jnp.arange(len(j), dtype=jnp.int32) < count)[:, None]
            bias = jnp.where(listed, bias, EMPTY).reshape(-1)
            k, v = (x.reshape(-1, x.shape[-1]) for x in (k, v))
            one = _softmax(q, k, v, bias, scale)
            state = one if state is None else _both(state, one)
        assert state is not None
        return state

    def one_by_one(q: Array, indices: Array, count: Array) -> _Softmax:
        def step(i: Array, state: _Softmax) -> _Softmax:
            j = indices[i]
            scores = _scores(q, k_blocks[j], bias_blocks[j], scale)
            peak = jnp.maximum(state.peak, scores.max(axis=1))
            shrink, weights = jnp.exp(state.peak - peak), jnp.exp(scores - peak[:, None])
            total = state.total * shrink + weights.sum(axis=1)
            mixed = state.mixed * shrink[:, None] + _matmul(weights, v_blocks[j])
            return _Softmax(peak, total, mixed)

        queries, size = q.shape[0], v_blocks.shape[-1]
        start = _Softmax(
            jnp.full(queries, LOWEST_PEAK, jnp.float32),
            jnp.zeros(queries, jnp.float32),
            jnp.zeros((queries, size), jnp.float32),
        )
        return jax.lax.fori_loop(0, count, step, start)

    def whole() -> tuple[Array, Array]:
        out, lse = jax.lax.map(partial(_whole_head, scale), heads)
        return out.reshape(-1, *out.shape[2:]), lse.reshape(-1, lse.shape[-1])

    def all_rows(form: Callable[..., _Softmax]) -> Callable[[], tuple[Array, Array]]:
        def row(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            return _finished(form(*part))

        parts = (heads.q, heads.indices + first, heads.counts)
        flat = tuple(x.reshape(-1, *x.shape[2:]) for x in parts)
        return lambda: jax.lax.map(row, flat)

    longest = heads.indices.shape[-1]
    mean = heads.counts.astype(jnp.float32).mean()
    if longest >= _FULL * kv_blocks:
        out, lse = jax.lax.cond(mean >= _FULL * kv_blocks, whole, all_rows(one_by_one))
    elif heads.q.shape[2] >= _QUERIES_AT_ONCE:
        full = mean >= _FULL * longest
        out, lse = jax.lax.cond(full, all_rows(at_once), all_rows(one_by_one))
    else:
        out, lse = all_rows(one_by_one)()
    return out.reshape(pairs, rows, *out.shape[1:]), lse.reshape(pairs, rows, -1)


def _whole_head(scale: float, head: _Head) -> tuple[Array, Array]:
    """Lists of nearly all blocks: every row multiplies all keys where they are, and forgets those that it does not list."""
    k, v = (x.reshape(-1, x.shape[-1]) for x in (head.k, head.v))

    def row(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, indices, count = part
        valid = jnp.arange(indices.shape[0], dtype=jnp.int32) < count
        listed = jnp.zeros(head.bias.shape[0], jnp.bool_).at[indices].max(valid)
        bias = jnp.where(listed[:, None], head.bias, EMPTY).reshape(-1)
        return _finished(_softmax(q, k, v, bias, scale))

    return jax.lax.map(row, (head.q, head.indices, head.counts))


def _softmax(q: Array, k: Array, v: Array, bias: Array, scale: float) -> _Softmax:
    # Left to itself, XLA:CPU makes it again for every query.
    scores = _scores(q, k, jax.lax.optimization_barrier(bias), scale)
    # A product, its maxima and its exponentials are one operation there, if this is how they are written.
    peak = jax.lax.reduce(scores, jnp.float32(LOWEST_PEAK), jax.lax.max, (1,))
    weights = jnp.exp(scores - peak[:, None])
    return _Softmax(peak, weights.sum(axis=1), _matmul(weights, v))


def _finished(state: _Softmax) -> tuple[Array, Array]:
    """Output and log-sum-exp."""
    some = state.total > 0
    total = jnp.where(some, state.total, 1.0)
    lse = jnp.where(some, state.peak + jnp.log(total), EMPTY)
    return state.mixed / total[:, None], lse


def _both(one: _Softmax, other: _Softmax) -> _Softmax:
    """Of two parts of the keys."""
    peak = jnp.maximum(one.peak, other.peak)
    mine, its = jnp.exp(one.peak - peak), jnp.exp(other.peak - peak)
    mixed = one.mixed * mine[:, None] + other.mixed * its[:, None]
    return _Softmax(peak, one.total * mine + other.total * its, mixed)


def _forward(scale: float, heads: _Head) -> tuple[tuple[Array, Array], tuple[_Head, Array, Array]]:
    out, lse = _attend(scale, heads)
    return (out, lse), (heads, out, lse)


def _backward(
    scale: float, kept: tuple[_Head, Array, Array], slopes: tuple[Array, Array]
) -> tuple[_Head]:
    heads, outs, lses = kept

    def one_head(one: tuple[_Head, Array, Array, Array, Array]) -> tuple[Array, Array, Array]:
        head, out, lse, out_slope, lse_slope = one
        # d(scores) = weights (out_slope . v - out_slope . out + lse_slope)
        offset = lse_slope - (out_slope * out).sum(axis=-1)

        def row(
            sums: tuple[Array, Array], part: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], Array]:
            q, indices, count, lse, slope, offset = part

            def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                to_q, to_k, to_v = state
                j = indices[i]
                k, v = (x[j].astype(jnp.float32) for x in (head.k, head.v))
                # Rows without keys have lse = EMPTY: their weights are exp(0) at invalid keys, not 0.
                seen = (head.bias[j] == 0)[None] & (lse > LOWEST_PEAK)[:, None]
                scores = _scores(q, head.k[j], head.bias[j], scale)
                weights = jnp.where(seen, jnp.exp(scores - lse[:, None]), 0.0)
                to_scores = weights * (slope @ v.T + offset[:, None]) * scale
                return (
                    to_q + to_scores @ k,
                    to_k.at[j].add(to_scores.T @ q.astype(jnp.float32)),
                    to_v.at[j].add(weights.T @ slope),
                )

            start = (jnp.zeros(q.shape, jnp.float32), *sums)
            to_q, to_k, to_v = jax.lax.fori_loop(0, count, step, start)
            return (to_k, to_v), to_q

        sums = (jnp.zeros(head.k.shape, jnp.float32), jnp.zeros(head.v.shape, jnp.float32))
        rows = (head.q, head.indices, head.counts, lse, out_slope, offset)
        (to_k, to_v), to_q = jax.lax.scan(row, sums, rows)
        return to_q.astype(head.q.dtype), to_k.astype(head.k.dtype), to_v.astype(head.v.dtype)

    to_q, to_k, to_v = jax.lax.map(one_head, (heads, outs, lses, *slopes))
    integers = (jnp.zeros(x.shape, jax.dtypes.float0) for x in (heads.indices, heads.counts))
    return (_Head(to_q, to_k, to_v, jnp.zeros_like(heads.bias), *integers),)


_attend.defvjp(_forward, _backward)


def _matmul(weights: Array, v: Array) -> Array:
    return jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _scores(q: Array, k: Array, bias: Array, scale: float) -> Array:
    """q k^T in float32, with invalid keys far below all others."""
    scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return scores * jnp.float32(scale) + bias[None]
