"""The meaning of the operation, in a few lines: pairs are an axis of their own."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.rotary_heads.layout import ArrangedHeads, HeadLayout, arranged


class Projection(NamedTuple):
    """What some tokens were projected to, and the weights of their norms.

    Attributes:
        projected: q, k and v, H D channels each, head by head. Channels after these 3 H D are not read, so that the output of
            a wider layer is passed whole.
        q_scale, k_scale: [D].
    """

    projected: Float[Array, "B L C"]
    q_scale: Float[Array, " D"]
    k_scale: Float[Array, " D"]


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
    size, tokens = cos.shape[1], len(cos)
    parts = []
    for projected, q_scale, k_scale in projections:
        used = projected[..., : 3 * heads * size]
        split = used.reshape(*used.shape[:2], 3, heads, size).transpose(2, 0, 3, 1, 4)
        q, k = (_normed(split[n], scale, epsilon) for n, scale in enumerate((q_scale, k_scale)))
        parts.append((q, k, split[2]))
    q, k, v = (jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True))
    q, k = (
        jnp.concatenate([_rotated(x[:, :, :tokens], cos, sin), x[:, :, tokens:]], axis=2)
        for x in (q, k)
    )
    return arranged(q, k, v, tokens, layout, second)


def _normed(x: Array, scale: Array, epsilon: float) -> Array:
    wide = x.astype(jnp.float32)
    rms = jnp.sqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)
    return (wide / rms).astype(x.dtype) * scale.astype(x.dtype)[None, None, None]


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[None, None, :, ::2], sin[None, None, :, ::2]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
