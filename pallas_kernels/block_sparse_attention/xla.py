"""Plain XLA: one head and one block of queries at a time, a loop over its list, online softmax. Any backend.

Work and memory follow the lists: a block that is not listed is neither read nor multiplied, unless the lists hold most of
all blocks. JAX cannot differentiate a loop of traced length, so gradients have a loop of their own over the same lists; it
computes the scores again, from the saved log-sum-exp.
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
from pallas_kernels.block_sparse_attention.softmax import INITIAL_MAX, key_bias

_QUERIES_AT_ONCE, _KEYS_AT_ONCE = 128, 4096
"""A block of at least so many queries takes so many keys of its list in one step: XLA:CPU then fuses the whole softmax and
uses several threads, which it does not do for smaller products."""
_SMALL = 32
"""So do blocks of at most so many queries, whose products are so small that a loop over a list is mostly the loop."""
_FULL = 0.7
"""Steps of many keys treat every list as long as the longest, which pays if the lists are this full on average. If they hold
this share of all blocks, rows multiply all keys in place and mask those they do not list."""
_SCORES = 2**19
"""Such rows go together, up to so many scores: 2 MB stay in a CPU's cache."""


class _Softmax(NamedTuple):
    """The state of an online softmax, float32."""

    m: Array  # running maximum of the scores, [block_q]
    l: Array  # running sum of exp(scores - m), [block_q]
    acc: Array  # running sum of exp(scores - m) v, [block_q, D]


class _Head(NamedTuple):
    """One head of one sample, cut into blocks; or all heads, along a leading dimension."""

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
            part = _softmax(q, k, v, bias[None], scale)
            state = part if state is None else _merge(state, part)
        assert state is not None
        return state

    def one_by_one(q: Array, indices: Array, count: Array) -> _Softmax:
        def step(i: Array, state: _Softmax) -> _Softmax:
            j = indices[i]
            scores = _scores(q, k_blocks[j], bias_blocks[j][None], scale)
            m = jnp.maximum(state.m, scores.max(axis=1))
            alpha, p = jnp.exp(state.m - m), jnp.exp(scores - m[:, None])
            l = state.l * alpha + p.sum(axis=1)
            acc = state.acc * alpha[:, None] + _matmul(p, v_blocks[j])
            return _Softmax(m, l, acc)

        queries, size = q.shape[0], v_blocks.shape[-1]
        start = _Softmax(
            jnp.full(queries, INITIAL_MAX, jnp.float32),
            jnp.zeros(queries, jnp.float32),
            jnp.zeros((queries, size), jnp.float32),
        )
        return jax.lax.fori_loop(0, count, step, start)

    def whole() -> tuple[Array, Array]:
        out, lse = jax.lax.map(partial(_whole_head, scale), heads)
        return out.reshape(-1, *out.shape[2:]), lse.reshape(-1, lse.shape[-1])

    def all_rows(
        softmax: Callable[[Array, Array, Array], _Softmax],
    ) -> Callable[[], tuple[Array, Array]]:
        def row(operands: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            return _finished(softmax(*operands))

        stacked = (heads.q, heads.indices + first, heads.counts)
        flat = tuple(x.reshape(-1, *x.shape[2:]) for x in stacked)
        return lambda: jax.lax.map(row, flat)

    longest = heads.indices.shape[-1]
    mean = heads.counts.astype(jnp.float32).mean()
    if longest >= _FULL * kv_blocks:
        out, lse = jax.lax.cond(mean >= _FULL * kv_blocks, whole, all_rows(one_by_one))
    elif not _SMALL < heads.q.shape[2] < _QUERIES_AT_ONCE:
        full = mean >= _FULL * longest
        out, lse = jax.lax.cond(full, all_rows(at_once), all_rows(one_by_one))
    else:
        out, lse = all_rows(one_by_one)()
    return out.reshape(pairs, rows, *out.shape[1:]), lse.reshape(pairs, rows, -1)


def _whole_head(scale: float, head: _Head) -> tuple[Array, Array]:
    """For lists of nearly all blocks: rows multiply all keys in place, and mask those they do not list."""
    k, v = (x.reshape(-1, x.shape[-1]) for x in (head.k, head.v))
    rows, queries, size = head.q.shape
    together = min(rows, max(1, _SCORES // (queries * len(k))))
    parts = -(-rows // together)
    together = -(-rows // parts)

    def part(operands: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, indices, counts = operands
        valid = jnp.arange(indices.shape[1], dtype=jnp.int32)[None] < counts[:, None]
        row = jnp.arange(len(q), dtype=jnp.int32)[:, None]
        listed = jnp.zeros((len(q), len(head.bias)), jnp.bool_).at[row, indices].max(valid)
        bias = jnp.where(listed[..., None], head.bias[None], EMPTY).reshape(len(q), -1)
        bias = jnp.repeat(bias, queries, axis=0)
        return _finished(_softmax(q.reshape(-1, size), k, v, bias, scale))

    def cut(x: Array) -> Array:
        padding = ((0, parts * together - rows),) + ((0, 0),) * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(parts, together, *x.shape[1:])

    out, lse = jax.lax.map(part, (cut(head.q), cut(head.indices), cut(head.counts)))
    out, lse = out.reshape(-1, queries, out.shape[-1]), lse.reshape(-1, queries)
    return out[:rows], lse[:rows]


def _softmax(q: Array, k: Array, v: Array, bias: Array, scale: float) -> _Softmax:
    # Without the barrier, XLA:CPU computes the bias again for every query.
    scores = _scores(q, k, jax.lax.optimization_barrier(bias), scale)
    # Written like this, XLA:CPU fuses the product, its maxima and its exponentials.
    m = jax.lax.reduce(scores, jnp.float32(INITIAL_MAX), jax.lax.max, (1,))
    p = jnp.exp(scores - m[:, None])
    return _Softmax(m, p.sum(axis=1), _matmul(p, v))


def _finished(state: _Softmax) -> tuple[Array, Array]:
    """Output and log-sum-exp."""
    some = state.l > 0
    l = jnp.where(some, state.l, 1.0)
    lse = jnp.where(some, state.m + jnp.log(l), EMPTY)
    return state.acc / l[:, None], lse


def _merge(a: _Softmax, b: _Softmax) -> _Softmax:
    """The softmax over the union of two disjoint sets of keys."""
    m = jnp.maximum(a.m, b.m)
    alpha_a, alpha_b = jnp.exp(a.m - m), jnp.exp(b.m - m)
    acc = a.acc * alpha_a[:, None] + b.acc * alpha_b[:, None]
    return _Softmax(m, a.l * alpha_a + b.l * alpha_b, acc)


def _forward(scale: float, heads: _Head) -> tuple[tuple[Array, Array], tuple[_Head, Array, Array]]:
    out, lse = _attend(scale, heads)
    return (out, lse), (heads, out, lse)


def _backward(
    scale: float, residuals: tuple[_Head, Array, Array], cotangents: tuple[Array, Array]
) -> tuple[_Head]:
    heads, outs, lses = residuals

    def one_head(operands: tuple[_Head, Array, Array, Array, Array]) -> tuple[Array, Array, Array]:
        head, out, lse, d_out, d_lse = operands
        # d(scores) = p (d(out) . v - d(out) . out + d(lse))
        offset = d_lse - (d_out * out).sum(axis=-1)

        def row(
            dkv: tuple[Array, Array], operands: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], Array]:
            q, indices, count, lse, d_out, offset = operands

            def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                dq, dk, dv = state
                j = indices[i]
                k, v = (x[j].astype(jnp.float32) for x in (head.k, head.v))
                # Rows without keys have lse = EMPTY: their weights are exp(0) at invalid keys, not 0.
                seen = (head.bias[j] == 0)[None] & (lse > INITIAL_MAX)[:, None]
                scores = _scores(q, head.k[j], head.bias[j][None], scale)
                p = jnp.where(seen, jnp.exp(scores - lse[:, None]), 0.0)
                ds = p * (d_out @ v.T + offset[:, None]) * scale
                return (
                    dq + ds @ k,
                    dk.at[j].add(ds.T @ q.astype(jnp.float32)),
                    dv.at[j].add(p.T @ d_out),
                )

            start = (jnp.zeros(q.shape, jnp.float32), *dkv)
            dq, dk, dv = jax.lax.fori_loop(0, count, step, start)
            return (dk, dv), dq

        dkv = (jnp.zeros(head.k.shape, jnp.float32), jnp.zeros(head.v.shape, jnp.float32))
        rows = (head.q, head.indices, head.counts, lse, d_out, offset)
        (dk, dv), dq = jax.lax.scan(row, dkv, rows)
        return dq.astype(head.q.dtype), dk.astype(head.k.dtype), dv.astype(head.v.dtype)

    dq, dk, dv = jax.lax.map(one_head, (heads, outs, lses, *cotangents))
    integers = (jnp.zeros(x.shape, jax.dtypes.float0) for x in (heads.indices, heads.counts))
    return (_Head(dq, dk, dv, jnp.zeros_like(heads.bias), *integers),)


_attend.defvjp(_forward, _backward)


def _matmul(p: Array, v: Array) -> Array:
    return jnp.matmul(p.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _scores(q: Array, k: Array, bias: Array, scale: float) -> Array:
    """q k^T in float32, with invalid keys far below all others."""
    scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return scores * jnp.float32(scale) + bias
