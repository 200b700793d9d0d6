"""The meaning of the operation, in a few lines."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.frame_order import reordered


def merge_heads(
    video: Float[Array, "B H S D"],
    text: Float[Array, "B H U D"],
    second: Bool[Array, "B H"] | None,
    *,
    lengths: tuple[int, ...],
    frames: int,
) -> tuple[Float[Array, "B _ C"], ...]:
    """See `api.merge_heads`."""
    video = video[:, :, : sum(lengths) - text.shape[2]]
    if frames:
        assert second is not None  # `api` checks it
        video = reordered(video, second, frames, back=True)
    tokens = jnp.concatenate([video, text], axis=2).swapaxes(1, 2)
    samples, length, heads, size = tokens.shape
    tokens = tokens.reshape(samples, length, heads * size)
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    return tuple(
        tokens[:, start : start + length] for start, length in zip(starts, lengths, strict=True)
    )
