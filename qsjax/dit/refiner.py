"""The token refiner: two small transformer blocks that turn language-model states into text tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from qsjax.dit.attention import key_bias, masked_attention
from qsjax.dit.config import DiTConfig
from qsjax.dit.embedders import FREQUENCIES, Embedder, sinusoid
from qsjax.dit.norms import LayerNorm
from qsjax.dit.slot import dtype_of
from qsjax.dit.stack import scan_layers
from qsjax.layers.stack import stacked

_MLP_RATIO = 4  # fixed in HunyuanVideo, whatever the blocks' own ratio is


class RefinerBlock(nnx.Module):
    """Self-attention and SiLU MLP with affine norms; only the two gates depend on the conditioning."""

    def __init__(self, config: DiTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.head_dim = config.head_dim
        self.norm1 = LayerNorm(width, dtype=dtype)
        self.qkv = nnx.Linear(width, 3 * width, param_dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, dtype=dtype)
        self.fc1 = nnx.Linear(width, _MLP_RATIO * width, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(_MLP_RATIO * width, width, param_dtype=dtype, rngs=rngs)
        self.modulation = nnx.Linear(
            width, 2 * width, param_dtype=dtype, rngs=rngs, kernel_init=nnx.initializers.zeros
        )

    def __call__(
        self,
        x: Float[Array, "B L D"],
        conditioning: Float[Array, "B D"],
        mask: Bool[Array, "B L L"],
    ) -> Float[Array, "B L D"]:
        """One block; `conditioning` has passed its SiLU, `mask[b, i, j]` says that i may see j."""
        gate, mlp_gate = jnp.split(self.modulation(conditioning), 2, axis=-1)
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, -1, self.head_dim)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        attended = masked_attention(q, k, v, key_bias(mask)[:, None]).transpose(0, 2, 1, 3)
        x = x + gate[:, None] * self.proj(attended.reshape(x.shape))
        hidden = self.fc2(jax.nn.silu(self.fc1(self.norm2(x))))
        return x + mlp_gate[:, None] * hidden


class TokenRefiner(nnx.Module):
    """HunyuanVideo's SingleTokenRefiner, with embedders of its own for time and mean text."""

    def __init__(self, config: DiTConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.time_embed = Embedder(2 * FREQUENCIES, width, dtype=dtype, rngs=rngs)
        self.text_embed = Embedder(config.text_dim, width, dtype=dtype, rngs=rngs)
        self.proj_in = nnx.Linear(config.text_dim, width, param_dtype=dtype, rngs=rngs)
        self.blocks = stacked(
            lambda rngs: RefinerBlock(config, dtype=dtype, rngs=rngs),
            config.num_refiner_blocks,
            rngs,
        )

    def __call__(
        self, text: Float[Array, "B L C"], mask: Bool[Array, "B L"], timestep: Float[Array, " B"]
    ) -> Float[Array, "B L D"]:
        """Refine text states; a sample whose mask is empty has no mean text and comes out as NaN."""
        tokens, conditioning, pairs = self.embed(text, mask, timestep)

        def step(
            block: RefinerBlock, x: Array, _: None, state: tuple[()]
        ) -> tuple[Array, tuple[()]]:
            return block(x, conditioning, pairs), state

        tokens, _ = scan_layers(self.blocks, step, tokens, None, ())
        return tokens

    def embed(
        self, text: Float[Array, "B L C"], mask: Bool[Array, "B L"], timestep: Float[Array, " B"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B D"], Bool[Array, "B L L"]]:
        """What the blocks are called with: tokens, conditioning, and which token sees which."""
        weights = mask.astype(jnp.float32)[:, :, None]
        mean = (text.astype(jnp.float32) * weights).sum(axis=1) / weights.sum(axis=1)
        conditioning = self.time_embed(sinusoid(timestep)) + self.text_embed(mean)
        conditioning = jax.nn.silu(conditioning)
        # Padded rows see key 0 only: an empty softmax row would be NaN.
        pairs = mask[:, :, None] & mask[:, None, :]
        pairs = pairs | (jnp.arange(mask.shape[1]) == 0)[None, None, :]
        return self.proj_in(text.astype(dtype_of(self.proj_in))), conditioning, pairs
