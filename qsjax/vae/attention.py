"""The mid-block attention: one head, causal by whole frames."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.vae.layers import GroupNorm


class Attention(nnx.Module):
    """x + to_out(attention(group_norm(x))): one head as wide as the features, over all cells of all frames so far."""

    def __init__(self, features: int, groups: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        def linear() -> nnx.Linear:
            return nnx.Linear(features, features, dtype=dtype, param_dtype=dtype, rngs=rngs)

        self.group_norm = GroupNorm(features, groups, dtype=dtype)
        self.to_q, self.to_k, self.to_v, self.to_out = linear(), linear(), linear(), linear()

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """A query in frame a sees the cells of frames 0..a; logits and softmax are float32."""
        b, t, h, w, c = x.shape
        y = self.group_norm(x).reshape(b, t * h * w, c)
        attended = causal_attention(self.to_q(y), self.to_k(y), self.to_v(y), frames=t)
        return x + self.to_out(attended).reshape(b, t, h, w, c)


def causal_attention(
    q: Float[Array, "B N C"], k: Float[Array, "B N C"], v: Float[Array, "B N C"], *, frames: int
) -> Float[Array, "B N C"]:
    """Softmax attention of `frames` equal frames, where a frame sees itself and all earlier ones.

    One frame of queries at a time against the keys of all frames, the later ones masked: one program for the body, where
    products of a shape for each frame took most of the time that attention takes to compile.
    """
    batch, tokens, width = q.shape
    cells = tokens // frames

    def attend(frame: tuple[Array, Array]) -> Array:
        queries, seen = frame
        scores = jnp.einsum("bqc,bkc->bqk", queries, k, preferred_element_type=jnp.float32)
        visible = jnp.arange(tokens, dtype=jnp.int32)[None, None] < seen
        scores = jnp.where(visible, scores / math.sqrt(width), -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bqk,bkc->bqc", weights, v)

    queries = jnp.moveaxis(q.reshape(batch, frames, cells, width), 1, 0)
    seen = cells * jnp.arange(1, frames + 1, dtype=jnp.int32)
    outputs = jax.lax.map(attend, (queries, seen))
    return jnp.moveaxis(outputs, 0, 1).reshape(batch, tokens, width)
