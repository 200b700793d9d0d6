"""The LLaMA-3 decoder trunk that gives HunyuanVideo its text states.

Source: transformers' `LlamaModel`. The pipeline reads `hidden_states[-3]`, the residual stream two layers
before the end and before the final norm; what comes after does not exist here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from qsjax.layers.norms import RMSNorm
from qsjax.layers.stack import stacked
from qsjax.text.attention import attend, causal_mask
from qsjax.text.config import LlamaConfig
from qsjax.text.stack import run


class LlamaLayer(nnx.Module):
    """One decoder layer: grouped-query attention and SwiGLU, each after an RMSNorm and with a residual connection."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim

        def linear(features_in: int, features_out: int) -> nnx.Linear:
            return nnx.Linear(
                features_in, features_out, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs
            )

        self.input_norm = RMSNorm(width, epsilon=config.rms_norm_eps, dtype=dtype)
        self.q_proj = linear(width, config.num_attention_heads * head)
        self.k_proj = linear(width, config.num_key_value_heads * head)
        self.v_proj = linear(width, config.num_key_value_heads * head)
        self.o_proj = linear(config.num_attention_heads * head, width)
        self.post_attention_norm = RMSNorm(width, epsilon=config.rms_norm_eps, dtype=dtype)
        self.gate_proj = linear(width, inner)
        self.up_proj = linear(width, inner)
        self.down_proj = linear(inner, width)
        self.head_dim = head

    def __call__(
        self,
        x: Float[Array, "B L D"],
        cos: Float[Array, "L d"],
        sin: Float[Array, "L d"],
        allowed: Bool[Array, "B L L"],
    ) -> Float[Array, "B L D"]:
        """Residual stream in, residual stream out; `allowed[b, i, j]`: token i sees token j."""
        h = self.input_norm(x)
        q, k, v = (
            project(h).reshape(*h.shape[:2], -1, self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.o_proj(attend(rotate(q, cos, sin), rotate(k, cos, sin), v, allowed))
        h = self.post_attention_norm(x)
        return x + self.down_proj(jax.nn.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(nnx.Module):
    """Token ids to text states.

    `embed` may be deleted where the rows of its table are gathered elsewhere: then `states` runs what is left.

    Args:
        config: shape of the original; only `config.num_used_layers` layers are made.
        dtype: of parameters and activations; norms' statistics, softmax and rotary tables are float32.
        rngs: initial weights (stream "params").
    """

    def __init__(
        self, config: LlamaConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.embed = nnx.Embed(
            config.vocab_size, config.hidden_size, dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        self.layers = stacked(
            lambda rngs: LlamaLayer(config, dtype=dtype, rngs=rngs), config.num_used_layers, rngs
        )
        self.config, self.dtype = config, jnp.dtype(dtype)

    def __call__(self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        """`hidden_states[-3]` of the original.

        Args:
            ids: token ids below `config.vocab_size`.
            mask: True for tokens, False for padding, which follows the tokens.

        Returns:
            States in the model's dtype; rows of padding are finite but mean nothing.
        """
        return self.states(self.embed(ids), mask)

    def states(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        """The same from the tokens' embeddings, in the model's dtype; `embed` is not needed."""
        cos, sin = (
            jnp.asarray(table, x.dtype)
            for table in rotary_tables(
                x.shape[1], self.config.head_dim, theta=self.config.rope_theta
            )
        )
        return run(self.layers, x, cos, sin, causal_mask(mask))


def rotary_tables(length: int, head_dim: int, *, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [length, head_dim] in float32, each frequency at k and at k + head_dim / 2.

    Made on the host: a device's own power and cosine differ by more than parity with PyTorch allows. Every
    intermediate is rounded to float32 where PyTorch rounds it.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = np.float32(1) / np.power(np.float64(theta), exponent).astype(np.float32)
    angle = np.arange(length, dtype=np.float32)[:, None] * frequency[None, :]
    angle = np.concatenate([angle, angle], axis=1).astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(
    x: Float[Array, "B L H d"], cos: Float[Array, "L d"], sin: Float[Array, "L d"]
) -> Float[Array, "B L H d"]:
    """Turn the pairs (x_k, x_{k + d/2}): LLaMA's half-split form, unlike the interleaved one of the DiT."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[None, :, None, :] + turned * sin[None, :, None, :]
