"""Attention among devices whose number does not divide the heads: each asks with its own tokens, and sees the keys of all."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qsjax.dit.blocks import Attention


def by_tokens(attention: Attention, axis: str, text: int) -> Attention:
    """The attention slot inside `jax.shard_map`, dense. Keys and values of the whole video are on every device for its time.

    Args:
        attention: dense, of a part of the queries.
        axis: of devices.
        text: tokens of the text, padding included.
    """

    def attend(
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B K"],
        state: Any,
    ) -> tuple[Float[Array, "B L H D"], Any]:
        video = q.shape[1] - text

        def every(x: Array) -> Array:
            tokens = jax.lax.all_gather(x[:, :video], axis, axis=1, tiled=True)
            return jnp.concatenate([tokens, x[:, video:]], axis=1)

        return attention(q, every(k), every(v), kv_valid, state)

    return attend
