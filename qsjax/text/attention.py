"""Masked attention of the text encoders: short sequences, so the logits are held whole."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attend(
    q: Float[Array, "B L H d"],
    k: Float[Array, "B L K d"],
    v: Float[Array, "B L K d"],
    allowed: Bool[Array, "#B L L"],
) -> Float[Array, "B L H*d"]:
    """softmax(q k^T / sqrt(d)) v, heads side by side; logits and softmax in float32, the rest in q's dtype.

    Args:
        q: queries.
        k: keys; each of the K heads serves H / K consecutive query heads.
        v: values.
        allowed: query i may see key j. A row without any True sees everything, which keeps it finite.
    """
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], width)
    logits = jnp.einsum("blkgd,bmkd->bkglm", grouped, k, preferred_element_type=jnp.float32)
    logits = jnp.where(allowed[:, None, None], logits * width**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bkglm,bmkd->blkgd", weights, v).reshape(batch, length, heads * width)


def causal_mask(mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Token i sees the valid tokens j <= i, and itself.

    The diagonal keeps rows of padding from being empty; it changes no valid row.
    """
    length = mask.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return (causal[None] & mask[:, None, :]) | jnp.eye(length, dtype=bool)[None]
