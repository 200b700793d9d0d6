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

from pallas_kernels import Projection
from pallas_kernels.dispatch import AUTO
from qsjax.dit.config import DiTConfig
from qsjax.dit.heads import HeadSource
from qsjax.dit.norms import EPSILON
from qsjax.dit.slot import (
    activated_input,
    gated_sum,
    joined_input,
    modulated_input,
    split_output,
)
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


@runtime_checkable
class ArrangingAttention(Attention[State], Protocol[State]):
    """An attention slot that has heads made in a layout of its own where kernels can do that."""

    def from_heads(
        self, source: HeadSource, kv_valid: Bool[Array, "B L"], state: State
    ) -> tuple[tuple[Float[Array, "B _ C"], ...], State]:
        """Attend over all tokens; the output for the tokens of each projection, the channels of all heads side by side."""


@dataclass(frozen=True)
class Context(Generic[State]):
    """What all blocks share.

    Attributes:
        cos, sin: rotary tables of the video's tokens, [N, D].
        kv_valid: the valid keys, [B, L].
        attention: the attention slot.
        rotary: the implementation of `pallas_kernels.rotary_heads`.
    """

    cos: Array
    sin: Array
    kv_valid: Array
    attention: Attention[State]
    rotary: str = AUTO


def _attend(
    projections: list[Projection], heads: int, context: Context[State], state: State
) -> tuple[tuple[Array, ...], State]:
    """Norms, rotation and the attention slot; its output for the tokens of each projection, [B, L, H D]."""
    source = HeadSource(tuple(projections), context.cos, context.sin, heads, context.rotary)
    attention = context.attention
    with jax.named_scope("attention"):
        if isinstance(attention, ArrangingAttention):
            return attention.from_heads(source, context.kv_valid, state)
        out, state = attention(*source.plain(), context.kv_valid, state)
        return source.divided(out), state


class Stream(nnx.Module):
    """One side of a double block: the layers that video tokens, or text tokens, go through."""

    def __init__(self, config: DiTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.mlp_size
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

    def project(self, x: Array, modulation: list[Array]) -> Projection:
        """The queries, keys and values of these tokens, as one product makes them."""
        shift, scale = modulation[:2]
        with jax.named_scope("qkv"):
            projected = self.qkv(modulated_input(self.qkv, x, shift, scale))
        return Projection(projected, self.q_norm.scale[...], self.k_norm.scale[...])

    def update(self, x: Array, attended: Array, modulation: list[Array]) -> Array:
        """Add the projected attention output, then the MLP's, each through its gate."""
        _, _, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        with jax.named_scope("proj"):
            x = gated_sum(x, gate, self.proj, attended)
        with jax.named_scope("mlp"):
            hidden = self.fc1(modulated_input(self.fc1, x, mlp_shift, mlp_scale))
            return gated_sum(x, mlp_gate, self.fc2, activated_input(self.fc2, hidden))


class DoubleBlock(nnx.Module):
    """Video and text have weights of their own and meet in one joint attention."""

    def __init__(self, config: DiTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.heads = config.num_heads
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
        projections = [
            self.img.project(img, img_modulation),
            self.txt.project(txt, txt_modulation),
        ]
        (video, text), state = _attend(projections, self.heads, context, state)
        img = self.img.update(img, video, img_modulation)
        txt = self.txt.update(txt, text, txt_modulation)
        return (img, txt), state


class SingleBlock(nnx.Module):
    """Video and text as one sequence; attention and MLP side by side between two fused linears."""

    def __init__(self, config: DiTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.mlp_size
        self.heads, self.width = config.num_heads, width
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
            prepared = modulated_input(self.linear1, x, shift, scale)
            projected, hidden = split_output(self.linear1, prepared, 3 * self.width)
        projection = Projection(projected, self.q_norm.scale[...], self.k_norm.scale[...])
        (attended,), state = _attend([projection], self.heads, context, state)
        with jax.named_scope("linear2"):
            joined = joined_input(self.linear2, attended, hidden)
            return gated_sum(x, gate, self.linear2, joined), state
