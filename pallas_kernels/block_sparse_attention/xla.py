"""Plain XLA: one head and one block of queries at a time, a loop over its list, online softmax. Any backend.

Work and memory follow the lists: a block that is not listed is neither read nor multiplied. Gradients walk the same
lists again (their scores are computed anew from the saved log-sum-exp), since a loop of traced length has no reverse.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.block_sparse_attention.cache import EMPTY, Cache
from pallas_kernels.block_sparse_attention.softmax import LOWEST_PEAK


class _Head(NamedTuple):
    """One head of one sample, cut in blocks."""

    q: Array  # [query blocks, block_q, D]
    k: Array  # [key blocks, block_kv, D]
    v: Array  # [key blocks, block_kv, D]
    bias: Array  # float32 [key blocks, block_kv], 0 or EMPTY
    indices: Array  # int32 [query blocks, K]
    counts: Array  # int32 [query blocks]


def attend(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    blocks: BlockLists,
    cache: Cache | None,
    *,
    scale: float,
) -> tuple[Float[Array, "B Q H D"], Float[Array, "B H Q"]]:
    """Output in q's dtype, and the log-sum-exp of the listed keys; differentiable in q, k, v and the cache."""
    batch, length, heads, size = q.shape

    def cut(x: Array, block: int, count: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, block * count - x.shape[1]), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, count, block, x.shape[-1])

    def shared(x: Array) -> Array:
        return jnp.broadcast_to(x, (batch, heads, *x.shape[2:])).reshape(-1, *x.shape[2:])

    bias = jnp.where(kv_valid, jnp.float32(0), jnp.float32(EMPTY))
    padding = blocks.block_kv * blocks.kv_blocks - k.shape[1]
    bias = jnp.pad(bias, ((0, 0), (0, padding)), constant_values=EMPTY)
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
    return (out if cache is None else cache.apply(out, lse)).astype(q.dtype), lse


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scale: float, heads: _Head) -> tuple[Array, Array]:
    def one_head(head: _Head) -> tuple[Array, Array]:
        def row(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            q, indices, count = part

            def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                peak, total, mixed = state
                scores = _scores(q, head, indices[i], scale)
                higher = jnp.maximum(peak, scores.max(axis=1))
                shrink, weights = jnp.exp(peak - higher), jnp.exp(scores - higher[:, None])
                v = head.v[indices[i]]
                more = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
                return (
                    higher,
                    total * shrink + weights.sum(axis=1),
                    mixed * shrink[:, None] + more,
                )

            queries, size = q.shape[0], head.v.shape[-1]
            start = (
                jnp.full(queries, LOWEST_PEAK, jnp.float32),
                jnp.zeros(queries, jnp.float32),
                jnp.zeros((queries, size), jnp.float32),
            )
            peak, total, mixed = jax.lax.fori_loop(0, count, step, start)
            some = total > 0
            total = jnp.where(some, total, 1.0)
            return mixed / total[:, None], jnp.where(some, peak + jnp.log(total), EMPTY)

        return jax.lax.map(row, (head.q, head.indices, head.counts))

    return jax.lax.map(one_head, heads)


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
                weights = jnp.where(seen, jnp.exp(_scores(q, head, j, scale) - lse[:, None]), 0.0)
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


def _scores(q: Array, head: _Head, block: Array, scale: float) -> Array:
    """q k^T of one pair of blocks in float32, with invalid keys far below all others."""
    k = head.k[block]
    scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return scores * jnp.float32(scale) + head.bias[block][None]
