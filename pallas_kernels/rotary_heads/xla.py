"""Plain XLA, any backend. A channel's partner is its neighbour: a shift by one and a select find it.

Pairs as an axis of their own would be the short form. On a TPU an axis of two fills two of 128 lanes, and float32 copies
of that kind take most of a block's time beside its products.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.rotary_heads.layout import ArrangedHeads, HeadLayout, arranged
from pallas_kernels.rotary_heads.reference import Projection


def rotary_heads(
    projections: tuple[Projection, ...],
    cos: Float[Array, "N D"],
    sin: Float[Array, "N D"],
    second: Bool[Array, "B H"] | None,
    *,
    heads: int,
    epsilon: float,
    layout: HeadLayout,
) -> ArrangedHeads:
    """See `api.arranged_heads`."""
    q, k, v = _plain(projections, cos, sin, heads=heads, epsilon=epsilon)
    return arranged(q, k, v, len(cos), layout, second)


def _plain(
    projections: tuple[Projection, ...],
    cos: Float[Array, "N D"],
    sin: Float[Array, "N D"],
    *,
    heads: int,
    epsilon: float,
) -> tuple[Float[Array, "B H L D"], Float[Array, "B H L D"], Float[Array, "B H L D"]]:
    """Queries, keys and values with one token after the other."""
    parts, start = [], 0
    for projection in projections:
        stop = start + projection.projected.shape[1]
        parts.append(_heads(projection, cos[start:stop], sin[start:stop], heads, epsilon))
        start = stop
    q, k, v = (jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True))
    return q, k, v


def _heads(
    projection: Projection, cos: Array, sin: Array, heads: int, epsilon: float
) -> tuple[Array, Array, Array]:
    projected, q_scale, k_scale = projection
    batch, length, _ = projected.shape
    size = q_scale.shape[0]
    q, k, v = (
        projected[..., part * heads * size : (part + 1) * heads * size].reshape(
            batch, length, heads, size
        )
        for part in range(3)
    )
    q, k = _normed(q, q_scale, epsilon), _normed(k, k_scale, epsilon)
    if tokens := len(cos):
        text = ((0, length - tokens), (0, 0))
        cos, sin = jnp.pad(cos, text, constant_values=1), jnp.pad(sin, text)
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    return q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)


def _normed(x: Array, scale: Array, epsilon: float) -> Array:
    wide = x.astype(jnp.float32)
    mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
    normed = (wide * jax.lax.rsqrt(mean_square + epsilon)).astype(x.dtype)
    return normed * scale.astype(x.dtype)[None, None, None]


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    wide = x.astype(jnp.float32)
    even = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) % 2 == 0
    cos, sin = cos[None, :, None], sin[None, :, None]
    turned = jnp.where(
        even, wide * cos - _shifted(wide, -1) * sin, wide * cos + _shifted(wide, 1) * sin
    )
    return turned.astype(x.dtype)


def _shifted(x: Array, by: int) -> Array:
    """x[i - by] in place i of the last axis. XLA computes a pad where it is used, but stores what a roll cuts and joins."""
    places = [(0, 0, 0)] * (x.ndim - 1) + [(by, -by, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), places)
