"""Attention on devices that share the tokens: it is sharded by heads, and each device sees all tokens of its own heads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qsjax.dit.blocks import Attention, State


def by_heads(attention: Attention[State], axis: str, text: int) -> Attention[State]:
    """Wrap an attention slot for use inside `jax.shard_map`.

    An all-to-all before the slot gives each device all tokens of its own heads; another one after it restores the sharding by
    tokens (DeepSpeed-Ulysses, arXiv 2309.14509). The few text tokens are replicated. The slot's state is that of the device's
    own heads.

    Args:
        attention: attention over all tokens of some heads.
        axis: mesh axis; its size divides the number of heads.
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
        heads = q.shape[2] // jax.lax.axis_size(axis)
        first = jax.lax.axis_index(axis) * heads

        def gathered(x: Array) -> Array:
            tokens = jax.lax.all_to_all(x[:, :video], axis, split_axis=2, concat_axis=1, tiled=True)
            words = jax.lax.dynamic_slice_in_dim(x[:, video:], first, heads, axis=2)
            return jnp.concatenate([tokens, words], axis=1)

        out, state = attention(gathered(q), gathered(k), gathered(v), kv_valid, state)
        total = out.shape[1] - text  # video tokens of all devices
        tokens = jax.lax.all_to_all(out[:, :total], axis, split_axis=1, concat_axis=2, tiled=True)
        words = jax.lax.all_gather(out[:, total:], axis, axis=2, tiled=True)
        return jnp.concatenate([tokens, words], axis=1), state

    return attend
