"""Attention and its gradient, a tile of the map at a time: memory grows with the tokens, not with their square.

The forward pass walks over blocks of keys with a running maximum and a running sum, and keeps the output and the logarithm of
each row's sum of exponentials. The backward pass makes the same tiles again from that logarithm (FlashAttention-2,
arXiv:2307.08691, algorithms 1 and 2). One head at a time: its tiles fit the memory that is near the arithmetic, and the
products are matrices, which XLA runs faster than batches of them on a CPU.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qsjax.dit.attention import key_bias

_WHOLE = 2048
"""Up to so many tokens, a head's map is a single tile."""
_QUERIES, _KEYS = (2048, 4096), (512, 1024)
"""Smallest and largest number of queries and of keys of a tile, where there are more."""
_LANES = 128
_LOWEST = -1e30


@jax.custom_vjp
def flash_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
) -> Float[Array, "B L H D"]:
    """softmax(q k^T / sqrt(D)) v over the valid keys; scores and sums are float32, the result has q's dtype."""
    return _forward(q, k, v, kv_valid)[0]


def by_head(x: Float[Array, "B L H D"]) -> Float[Array, "M L D"]:
    """Heads of all samples along one axis, M = B H."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def tiled(x: Array, size: int, axis: int = 1) -> Array:
    """[..., L, ...] -> [..., tiles, size, ...] along an axis, padded with zeros."""
    count = -(-x.shape[axis] // size)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * size - x.shape[axis])
    return jnp.pad(x, padding).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def scores(q: Float[Array, "*B Q D"], k: Float[Array, "*B K D"], bias: Array) -> Array:
    """q k^T / sqrt(D) + bias, [*B, Q, K], float32."""
    product = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
    return product * jnp.float32(q.shape[-1] ** -0.5) + bias


def _forward(
    q: Array, k: Array, v: Array, kv_valid: Array
) -> tuple[Array, tuple[Array, Array, Array, Array, Array, Array]]:
    """The output [B, L, H, D], and with the inputs what the gradient needs: the logarithms of sums, [M, tiles, rows]."""
    queries, keys, values, bias = _tiles(q, k, v, kv_valid)

    def of_head(head: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v, bias = head
        return jax.lax.map(lambda rows: _attend(rows, k, v, bias), q)

    out, log_sums = jax.lax.map(of_head, (queries, keys, values, bias))
    out = _joined(out, q.shape)
    return out, (q, k, v, kv_valid, out, log_sums)


def _attend(q: Array, k: Array, v: Array, bias: Array) -> tuple[Array, Array]:
    """The output of some queries [Q, D] over all tiles of keys [tiles, K, D], and their log-sum-exp [Q]."""

    def add(carry: tuple[Array, Array, Array], tile: tuple[Array, Array, Array]) -> Any:
        peak, total, mixed = carry
        k, v, bias = tile
        found = scores(q, k, bias)
        higher = jnp.maximum(peak, found.max(axis=1))
        weights, fading = jnp.exp(found - higher[:, None]), jnp.exp(peak - higher)
        return (
            higher,
            fading * total + weights.sum(axis=1),
            fading[:, None] * mixed + _product(weights.astype(v.dtype), v),
        ), None

    rows, size = q.shape
    lowest, nothing = jnp.full(rows, _LOWEST, jnp.float32), jnp.zeros(rows, jnp.float32)
    start = (lowest, nothing, jnp.zeros((rows, size), jnp.float32))
    (peak, total, mixed), _ = jax.lax.scan(add, start, (k, v, bias))
    return (mixed / total[:, None]).astype(q.dtype), peak + jnp.log(total)


def _backward(
    saved: tuple[Array, Array, Array, Array, Array, Array], gradient: Array
) -> tuple[Array, Array, Array, None]:
    q, k, v, kv_valid, out, log_sums = saved
    queries, keys, values, bias = _tiles(q, k, v, kv_valid)
    size = queries.shape[2]
    # Each row's sum of weight times gradient of the weight, without the weights.
    inner = (out.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    gradients = tiled(by_head(gradient), size)
    inner = tiled(by_head(inner), size)[..., 0]

    def of_head(head: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        k, v, bias, *rows = head

        def of_keys(dq: Array, tile: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            nothing = jnp.zeros(tile[0].shape, jnp.float32)
            (dk, dv), dq = jax.lax.scan(
                lambda sums, rows: _add_gradients(sums, tile, rows), (nothing, nothing), (*rows, dq)
            )
            return dq, (dk, dv)

        dq, (dk, dv) = jax.lax.scan(of_keys, jnp.zeros(rows[0].shape, jnp.float32), (k, v, bias))
        return dq.astype(q.dtype), dk.astype(q.dtype), dv.astype(q.dtype)

    found = jax.lax.map(of_head, (keys, values, bias, queries, gradients, log_sums, inner))
    dq, dk, dv = (_joined(x, q.shape) for x in found)
    return dq, dk, dv, None


def _add_gradients(
    sums: tuple[Array, Array], tile: tuple[Array, ...], rows: tuple[Array, ...]
) -> tuple[tuple[Array, Array], Array]:
    """Add a tile's part to the gradients of its keys and values; return that of its queries with this tile's part."""
    (dk, dv), (k, v, bias), (q, gradient, log_sum, inner, dq) = sums, tile, rows
    weights = jnp.exp(scores(q, k, bias) - log_sum[:, None])
    dv = dv + _product(weights.astype(q.dtype).T, gradient)
    of_scores = weights * (_product(gradient, v.T) - inner[:, None])
    of_scores = (of_scores * jnp.float32(q.shape[-1] ** -0.5)).astype(q.dtype)
    return (dk + _product(of_scores.T, q), dv), dq + _product(of_scores, k)


flash_attention.defvjp(_forward, _backward)


def _tiles(
    q: Array, k: Array, v: Array, kv_valid: Array
) -> tuple[Array, Array, Array, Float[Array, "M _ 1 K"]]:
    """Queries, keys and values of every head, [M, tiles, size, D], and the bias of keys; padded keys are masked."""
    length, heads = q.shape[1:3]
    rows, columns = _size(length, _QUERIES), _size(length, _KEYS)
    bias = jnp.repeat(key_bias(tiled(kv_valid, columns)), heads, axis=0)[:, :, None]
    return (
        tiled(by_head(q), rows),
        tiled(by_head(k), columns),
        tiled(by_head(v), columns),
        bias,
    )


def _size(length: int, between: tuple[int, int]) -> int:
    """The size of tiles with the least padding, the largest of such."""
    if length <= _WHOLE:
        return length
    smallest, largest = between
    return min(range(largest, smallest - 1, -_LANES), key=lambda size: -(-length // size) * size)


def _joined(x: Array, shape: tuple[int, ...]) -> Array:
    """[M, tiles, size, D] -> [B, L, H, D]."""
    batch, length, heads, size = shape
    x = x.reshape(batch, heads, -1, size)[:, :, :length]
    return x.swapaxes(1, 2)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
