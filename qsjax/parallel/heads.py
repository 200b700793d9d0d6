"""Attention among devices that share the tokens: for its time they share the heads, and each sees all tokens of its own."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qsjax.dit.blocks import Attention


def by_heads(attention: Attention, axis: str, text: int) -> Attention:
    """The attention slot inside `jax.shard_map`.

    Two exchanges around the slot (all-to-all, DeepSpeed-Ulysses, arXiv 2309.14509): the tokens of a device's heads come from everyone,
    and go back. The text's few tokens are on every device in any case. The slot's state is that of a device's own heads.

    Args:
        attention: over all tokens of some heads.
        axis: of devices; their number divides the heads.
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
        heads = q.shape[2] // jax.lax.axis_size(axis)
        first = jax.lax.axis_index(axis) * heads

        def gathered(x: Array) -> Array:
            tokens = jax.lax.all_to_all(x[:, :video], axis, split_axis=2, concat_axis=1, tiled=True)
            words = jax.lax.dynamic_slice_in_dim(x[:, video:], first, heads, axis=2)
            return jnp.concatenate([tokens, words], axis=1)

        out, state = attention(gathered(q), gathered(k), gathered(v), kv_valid, state)
        every = out.shape[1] - text
        tokens = jax.lax.all_to_all(out[:, :every], axis, split_axis=1, concat_axis=2, tiled=True)
        words = jax.lax.all_gather(out[:, every:], axis, axis=2, tiled=True)
        return jnp.concatenate([tokens, words], axis=1), state

    return attend
