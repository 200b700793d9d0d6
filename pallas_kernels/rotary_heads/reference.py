"""The meaning of the operation, in a few lines: pairs are an axis of their own."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotary_heads(
    projected: Float[Array, "B L C"],
    q_scale: Float[Array, " D"],
    k_scale: Float[Array, " D"],
    cos: Float[Array, "N D"],
    sin: Float[Array, "N D"],
    *,
    heads: int,
    epsilon: float,
) -> tuple[Float[Array, "B H L D"], Float[Array, "B H L D"], Float[Array, "B H L D"]]:
    """See `api.rotary_heads`."""
    size, tokens = q_scale.shape[0], len(cos)
    used = projected[..., : 3 * heads * size]
    q, k, v = used.reshape(*used.shape[:2], 3, heads, size).transpose(2, 0, 3, 1, 4)

    def prepared(x: Array, scale: Array) -> Array:
        x = _normed(x, scale, epsilon)
        video, text = x[:, :, :tokens], x[:, :, tokens:]
        return jnp.concatenate([_rotated(video, cos, sin), text], axis=2)

    return prepared(q, q_scale), prepared(k, k_scale), v


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
