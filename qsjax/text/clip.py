"""The CLIP text tower that gives HunyuanVideo its pooled prompt vector.

Source: transformers' `CLIPTextModel`; the pipeline uses its `pooler_output`, without the text projection.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from qsjax.errors import InputError
from qsjax.layers.norms import standardized
from qsjax.layers.stack import stacked
from qsjax.text.attention import attend
from qsjax.text.config import ClipConfig
from qsjax.text.stack import run


class LayerNorm(nnx.Module):
    """CLIP's affine norm: float32 up to the result, as PyTorch computes it, where the DiT's rounds before the scale."""

    def __init__(self, features: int, *, epsilon: float, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones(features, dtype))
        self.bias = nnx.Param(jnp.zeros(features, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Normalize each token; dtype in = dtype out."""
        scale, bias = (p[None, None].astype(jnp.float32) for p in (self.scale, self.bias))
        return (standardized(x, self.epsilon) * scale + bias).astype(x.dtype)


class ClipLayer(nnx.Module):
    """One layer: causal attention and a two-layer MLP, each after a LayerNorm and with a residual connection."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width, inner = config.hidden_size, config.intermediate_size

        def linear(features_in: int, features_out: int) -> nnx.Linear:
            return nnx.Linear(features_in, features_out, dtype=dtype, param_dtype=dtype, rngs=rngs)

        self.norm1 = LayerNorm(width, epsilon=config.layer_norm_eps, dtype=dtype)
        self.q_proj, self.k_proj, self.v_proj = (linear(width, width) for _ in range(3))
        self.out_proj = linear(width, width)
        self.norm2 = LayerNorm(width, epsilon=config.layer_norm_eps, dtype=dtype)
        self.fc1 = linear(width, inner)
        self.fc2 = linear(inner, width)
        self.num_heads, self.hidden_act = config.num_attention_heads, config.hidden_act

    def __call__(
        self, x: Float[Array, "B L D"], allowed: Bool[Array, "1 L L"]
    ) -> Float[Array, "B L D"]:
        """Residual stream in, residual stream out; `allowed[0, i, j]`: token i sees token j."""
        h = self.norm1(x)
        q, k, v = (
            project(h).reshape(*h.shape[:2], self.num_heads, -1)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out_proj(attend(q, k, v, allowed))
        return x + self.fc2(_activate(self.fc1(self.norm2(x)), self.hidden_act))


class Clip(nnx.Module):
    """Token ids to one vector per prompt.

    Args:
        config: shape of the tower.
        dtype: of parameters and activations; LayerNorm and softmax are float32.
        rngs: initial weights (stream "params").
    """

    def __init__(
        self, config: ClipConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        width = config.hidden_size
        self.token_embed = nnx.Embed(
            config.vocab_size, width, dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        self.position_embed = nnx.Embed(
            config.max_position_embeddings, width, dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        self.layers = stacked(
            lambda rngs: ClipLayer(config, dtype=dtype, rngs=rngs), config.num_hidden_layers, rngs
        )
        self.final_norm = LayerNorm(width, epsilon=config.layer_norm_eps, dtype=dtype)
        self.config = config

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B P"]:
        """`pooler_output` of the original: the normed state of the end-of-text token.

        Args:
            ids: token ids; padding after end-of-text has no influence, so there is no mask.

        Returns:
            Pooled vectors in the model's dtype.

        Raises:
            InputError: more tokens than the model has positions.
        """
        length = ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise InputError(
                f"CLIP: {length} tokens were given, the model has {self.config.max_position_embeddings} positions; "
                f"shorten the prompt"
            )
        positions = jnp.arange(length, dtype=jnp.int32)
        x = self.token_embed(ids) + self.position_embed(positions)[None]
        x = run(self.layers, x, jnp.tril(jnp.ones((length, length), bool))[None])
        ends = end_of_text(ids, self.config.eos_token_id)
        # The norm acts on each token alone, so only the pooled one needs it.
        return self.final_norm(jnp.take_along_axis(x, ends[:, None, None], axis=1))[:, 0]


def end_of_text(ids: Int[Array, "B L"], eos_token_id: int) -> Int[Array, " B"]:
    """Position to pool: the first end-of-text.

    Configurations of the first CLIP releases say 2, which is not their end-of-text; transformers then takes
    the highest id, which is end-of-text in their vocabulary.
    """
    marks = ids if eos_token_id == 2 else (ids == eos_token_id).astype(jnp.int32)
    return jnp.argmax(marks, axis=1).astype(jnp.int32)


def _activate(x: Array, kind: str) -> Array:
    return x * jax.nn.sigmoid(1.702 * x) if kind == "quick_gelu" else jax.nn.gelu(x, False)
