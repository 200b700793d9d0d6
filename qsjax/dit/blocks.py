"""The two kinds of block: double-stream (video and text apart) and single-stream (together).

A block calls its linear layers without knowing whether they are quantized, and hands queries, keys and values to the
attention slot without knowing whether that is sparse.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from qsjax.dit.config import DiTConfig
from qsjax.dit.norms import EPSILON
from qsjax.dit.rope import apply_rope
from qsjax.dit.slot import activated_input, gated_sum, joined_input, modulated_input
from qsjax.layers.norms import RMSNorm

State = TypeVar("State")


@runtime_checkable
class Attention(Protocol[State]):
    """The attention slot: one layer's attention, with a state of that layer that only it understands."""

    def __call__(
        self,
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B L"],
        state: State,
    ) -> tuple[Float[Array, "B L H D"], State]:
        """Attend over all tokens; keys outside `kv_valid` (padded text) are never seen."""


@dataclass(frozen=True)
class Context(Generic[State]):
    """What all blocks share: rotary tables of the video tokens, the valid keys, the attention slot."""

    cos: Array
    sin: Array
    kv_valid: Array
    attention: Attention[State]


def _heads(x: Array, parts: int, head_dim: int) -> list[Array]:
    """Split [B, L, parts * H * D] into `parts` arrays [B, L, H, D]."""
    return [part.reshape(*x.shape[:2], -1, head_dim) for part in jnp.split(x, parts, axis=-1)]


class Stream(nnx.Module):
    """One side of a double block: the layers that video tokens, or text tokens, go through."""

    def __init__(self, config: DiTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.mlp_size
        self.head_dim = config.head_dim
        # Zero modulation makes a new block the identity, from which diffusion transformers train well.
        self.modulation = nnx.Linear(
            width, 6 * width, param_dtype=dtype, rngs=rngs, kernel_init=nnx.initializers.zeros
        )
        self.qkv = nnx.Linear(width, 3 * width, param_dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(config.head_dim, epsilon=EPSILON, dtype=dtype)
        self.k_norm = RMSNorm(config.head_dim, epsilon=EPSILON, dtype=dtype)
        self.proj = nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)
        self.fc1 = nnx.Linear(width, mlp, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(mlp, width, param_dtype=dtype, rngs=rngs)

    def heads(self, x: Array, modulation: list[Array]) -> tuple[Array, Array, Array]:
        """Normed queries and keys, and values, [B, L, H, D] each."""
        shift, scale = modulation[:2]
        with jax.named_scope("qkv"):
            q, k, v = _heads(self.qkv(modulated_input(self.qkv, x, shift, scale)), 3, self.head_dim)
            return self.q_norm(q), self.k_norm(k), v

    def update(self, x: Array, attended: Array, modulation: list[Array]) -> Array:
        """Add the projected attention output, then the MLP's, each through its gate."""
        _, _, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        with jax.named_scope("proj"):
            x = gated_sum(x, gate, self.proj, attended.reshape(x.shape))
        with jax.named_scope("mlp"):
            hidden = self.fc1(modulated_input(self.fc1, x, mlp_shift, mlp_scale))
            return gated_sum(x, mlp_gate, self.fc2, activated_input(self.fc2, hidden))


class DoubleBlock(nnx.Module):
    """Video and text have weights of their own and meet in one joint attention."""

    def __init__(self, config: DiTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.img = Stream(config, dtype=dtype, rngs=rngs)
        self.txt = Stream(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        streams: tuple[Float[Array, "B N D"], Float[Array, "B T D"]],
        modulation: tuple[Float[Array, "B M"], Float[Array, "B M"]],
        context: Context[State],
        state: State,
    ) -> tuple[tuple[Array, Array], State]:
        """Update (video, text); `modulation` holds shift, scale, gate twice for each, concatenated."""
        img, txt = streams
        img_modulation, txt_modulation = (jnp.split(row, 6, axis=-1) for row in modulation)
        img_q, img_k, img_v = self.img.heads(img, img_modulation)
        txt_q, txt_k, txt_v = self.txt.heads(txt, txt_modulation)
        img_q = apply_rope(img_q, context.cos, context.sin)
        img_k = apply_rope(img_k, context.cos, context.sin)
        with jax.named_scope("attention"):
            attended, state = context.attention(
                jnp.concatenate([img_q, txt_q], axis=1),
                jnp.concatenate([img_k, txt_k], axis=1),
                jnp.concatenate([img_v, txt_v], axis=1),
                context.kv_valid,
                state,
            )
        split = img.shape[1]
        img = self.img.update(img, attended[:, :split], img_modulation)
        txt = self.txt.update(txt, attended[:, split:], txt_modulation)
        return (img, txt), state


class SingleBlock(nnx.Module):
    """Video and text as one sequence; attention and MLP side by side between two fused linears."""

    def __init__(self, config: DiTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.mlp_size
        self.head_dim, self.width = config.head_dim, width
        self.modulation = nnx.Linear(
            width, 3 * width, param_dtype=dtype, rngs=rngs, kernel_init=nnx.initializers.zeros
        )
        self.linear1 = nnx.Linear(width, 3 * width + mlp, param_dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(config.head_dim, epsilon=EPSILON, dtype=dtype)
        self.k_norm = RMSNorm(config.head_dim, epsilon=EPSILON, dtype=dtype)
        self.linear2 = nnx.Linear(width + mlp, width, param_dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        modulation: Float[Array, "B M"],
        context: Context[State],
        state: State,
    ) -> tuple[Float[Array, "B L D"], State]:
        """Update video and text tokens, video first; `modulation` is shift, scale, gate concatenated."""
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        with jax.named_scope("linear1"):
            projected = self.linear1(modulated_input(self.linear1, x, shift, scale))
        q, k, v = _heads(projected[..., : 3 * self.width], 3, self.head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        video = context.cos.shape[0]
        q, k = (
            jnp.concatenate(
                [apply_rope(part[:, :video], context.cos, context.sin), part[:, video:]], axis=1
            )
            for part in (q, k)
        )
        with jax.named_scope("attention"):
            attended, state = context.attention(q, k, v, context.kv_valid, state)
        hidden = projected[..., 3 * self.width :]
        with jax.named_scope("linear2"):
            joined = joined_input(self.linear2, attended.reshape(x.shape), hidden)
            return gated_sum(x, gate, self.linear2, joined), state
