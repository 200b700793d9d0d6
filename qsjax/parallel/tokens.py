"""Attention on devices whose number does not divide the heads: each has its own queries, and all keys are gathered."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qsjax.dit.blocks import Attention, State


def by_tokens(attention: Attention[State], axis: str, text: int) -> Attention[State]:
    """Wrap a dense attention slot for use inside `jax.shard_map`. Keys and values of the whole video are gathered on every device
    while it runs.

    Args:
        attention: dense attention, which accepts a part of the queries.
        axis: mesh axis of the devices.
        text: number of text tokens, padding included.
    """

    def attend(
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B K"],
        state: State,
    ) -> tuple[Float[Array, "B L H D"], State]:
        video = q.shape[1] - text

        def gathered(x: Array) -> Array:
            tokens = jax.lax.all_gather(x[:, :video], axis, axis=1, tiled=True)
            return jnp.concatenate([tokens, x[:, video:]], axis=1)

        return attention(q, gathered(k), gathered(v), kv_valid, state)

    return attend
