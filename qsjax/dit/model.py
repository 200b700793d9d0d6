"""HunyuanVideo's diffusion transformer: latents, time, text in; velocity out.

It knows neither quantization nor sparsity. A linear layer may be replaced by any module that fits the linear slot
(`qsjax.dit.slot`), and attention is an argument of the call.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from pallas_kernels import Kernels
from qsjax.dit.attention import DenseAttention
from qsjax.dit.blocks import Attention, Context, DoubleBlock, SingleBlock
from qsjax.dit.config import DiTConfig
from qsjax.dit.embedders import FREQUENCIES, Embedder, sinusoid
from qsjax.dit.norms import modulate
from qsjax.dit.refiner import TokenRefiner
from qsjax.dit.rope import rope_tables
from qsjax.dit.slot import dtype_of
from qsjax.dit.stack import Kept, over_layers, scan_layers
from qsjax.errors import InputError
from qsjax.layers.stack import stacked

State = TypeVar("State")
Streams = tuple[Array, Array]


class Modulation(NamedTuple):
    """Every modulation vector of one denoising step (or, with one more leading axis, of all steps).

    Attributes:
        img: [double blocks, B, 6D]; shift, scale, gate of attention, then of the MLP.
        txt: [double blocks, B, 6D].
        single: [single blocks, B, 3D].
        final: [B, 2D]; shift, scale.
    """

    img: Array
    txt: Array
    single: Array
    final: Array


class FinalLayer(nnx.Module):
    """Modulated norm and the projection of a token to its patch."""

    def __init__(self, config: DiTConfig, patch: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros
        width = config.hidden_size
        self.modulation = nnx.Linear(
            width, 2 * width, param_dtype=dtype, rngs=rngs, kernel_init=zeros
        )
        self.linear = nnx.Linear(width, patch, param_dtype=dtype, rngs=rngs, kernel_init=zeros)


class DiT(nnx.Module):
    """The transformer.

    Example:
        >>> dit = DiT(DiTConfig.preset("tiny"), rngs=nnx.Rngs(0))
        >>> velocity = jax.jit(DiT.__call__)(dit, latents, timestep, text, text_mask, pooled, guidance)

    Args:
        config: all sizes.
        dtype: dtype of parameters and matmuls. Sinusoids, rotary tables and rotation, norm statistics,
            softmax and the mean of the text are float32 in any case, as in the original.
        rngs: for the initial values.
    """

    def __init__(
        self, config: DiTConfig, *, dtype: jnp.dtype | type = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        dtype = jnp.dtype(dtype)
        self.config = config
        self.kernels = Kernels()
        width, patch = config.hidden_size, _volume(config.patch_size)
        self.patch_embed = nnx.Linear(
            config.in_channels * patch, width, param_dtype=dtype, rngs=rngs
        )
        self.time_embed = Embedder(2 * FREQUENCIES, width, dtype=dtype, rngs=rngs)
        self.pooled_embed = Embedder(config.pooled_dim, width, dtype=dtype, rngs=rngs)
        if config.guidance_embeds:
            self.guidance_embed = Embedder(2 * FREQUENCIES, width, dtype=dtype, rngs=rngs)
        self.refiner = TokenRefiner(config, dtype=dtype, rngs=rngs)
        self.double_blocks = stacked(
            lambda rngs: DoubleBlock(config, dtype=dtype, rngs=rngs), config.num_double_blocks, rngs
        )
        self.single_blocks = stacked(
            lambda rngs: SingleBlock(config, dtype=dtype, rngs=rngs), config.num_single_blocks, rngs
        )
        self.final = FinalLayer(config, config.out_channels * patch, dtype=dtype, rngs=rngs)

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the residual stream."""
        return dtype_of(self.patch_embed)

    @property
    def dense_attention(self) -> DenseAttention:
        """What fills the attention slot unless a caller does."""
        return DenseAttention(self.kernels.attention)

    def __call__(
        self,
        latents: Float[Array, "B C T H W"],
        timestep: Float[Array, " B"],
        text: Float[Array, "B L E"],
        text_mask: Bool[Array, "B L"],
        pooled: Float[Array, "B P"],
        guidance: Float[Array, " B"] | None = None,
        *,
        modulation: Modulation | None = None,
    ) -> Float[Array, "B O T H W"]:
        """Velocity of the flow, float32, with dense attention.

        Args:
            latents: noisy latents, float32.
            timestep: 1000 sigma, in [0, 1000].
            text: states of the language model, right-padded.
            text_mask: which of them are valid; at least one a sample.
            pooled: pooled text embedding.
            guidance: 1000 times the guidance scale; required by guidance-distilled models, else None.
            modulation: this step's row of `modulation(...)`; then no modulation weight is read.

        Raises:
            InputError: guidance given to a model without it, or missing; latents not divisible by the patch.
        """
        velocity, _ = self.forward(
            latents, timestep, text, text_mask, pooled, guidance, modulation=modulation
        )
        return velocity

    def forward(
        self,
        latents: Float[Array, "B C T H W"],
        timestep: Float[Array, " B"],
        text: Float[Array, "B L E"],
        text_mask: Bool[Array, "B L"],
        pooled: Float[Array, "B P"],
        guidance: Float[Array, " B"] | None = None,
        *,
        modulation: Modulation | None = None,
        attention: Attention[State] | None = None,
        state: State = (),
        axis: str | None = None,
        kept: Kept = "everything",
    ) -> tuple[Float[Array, "B O T H W"], State]:
        """The same with another attention, whose state is stacked over all blocks.

        The DiT threads `state` through its blocks (double, then single) and never looks inside. With an `axis` of devices, inside
        `jax.shard_map`, each computes its share of the video's tokens; then `attention` must reach the other devices' tokens.
        `kept` is what a backward pass keeps of the blocks, see `qsjax.dit.stack`.
        """
        if modulation is None:
            modulation = self._modulation(timestep, pooled, guidance)
        img, txt, context = self.embed(
            latents, timestep, text, text_mask, attention=attention, axis=axis
        )
        img, state = self.through_blocks(img, txt, context, modulation, state, kept=kept)
        return self.velocity(img, modulation, latents, axis=axis), state

    def through_blocks(
        self,
        img: Float[Array, "B N D"],
        txt: Float[Array, "B L D"],
        context: Context[State],
        modulation: Modulation,
        state: State = (),
        *,
        kept: Kept = "everything",
    ) -> tuple[Float[Array, "B N D"], State]:
        """The video's tokens after the last block, and the attention slot's state; arguments are those of `embed`."""

        def double(
            block: DoubleBlock, streams: Streams, rows: Streams, layer_state: State
        ) -> tuple[Streams, State]:
            with jax.named_scope("double_block"):
                return block(streams, rows, context, layer_state)

        def single(
            block: SingleBlock, x: Array, row: Array, layer_state: State
        ) -> tuple[Array, State]:
            with jax.named_scope("single_block"):
                return block(x, row, context, layer_state)

        tokens = img.shape[1]
        (img, txt), state = scan_layers(
            self.double_blocks,
            double,
            (img, txt),
            (modulation.img, modulation.txt),
            state,
            kept=kept,
        )
        x, state = scan_layers(
            self.single_blocks,
            single,
            jnp.concatenate([img, txt], axis=1),
            modulation.single,
            state,
            first=self.config.num_double_blocks,
            kept=kept,
        )
        return x[:, :tokens], state

    @jax.named_scope("final")
    def velocity(
        self,
        img: Float[Array, "B N D"],
        modulation: Modulation,
        latents: Array,
        *,
        axis: str | None = None,
    ) -> Float[Array, "B O T H W"]:
        """The final layer: the video's tokens to a float32 velocity of the latents' size, gathered from the devices of an axis."""
        shift, scale = jnp.split(modulation.final, 2, axis=-1)
        patches = self.final.linear(modulate(img, shift, scale))
        if axis is not None:
            patches = jax.lax.all_gather(patches, axis, axis=1, tiled=True)
        return self._unpatchify(patches, self._grid(latents)).astype(jnp.float32)

    @jax.named_scope("embed")
    def embed(
        self,
        latents: Float[Array, "B C T H W"],
        timestep: Float[Array, " B"],
        text: Float[Array, "B L E"],
        text_mask: Bool[Array, "B L"],
        *,
        attention: Attention[State] | None = None,
        axis: str | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B L D"], Context[State]]:
        """Video tokens, refined text tokens, and what all blocks share: everything before the first block.

        Args:
            latents, timestep, text, text_mask: as in a call.
            attention: for the slot; None is dense.
            axis: of devices, inside `jax.shard_map`: each embeds its own share of the video's tokens, and the whole text.
        """
        grid = self._grid(latents)
        cos, sin = map(jnp.asarray, rope_tables(self.config, grid))
        # Padding may hold anything: it is masked, but zero times a NaN is a NaN.
        text = jnp.where(text_mask[..., None], text, 0)
        txt = self.refiner(text, text_mask, timestep)
        patches = self._patchify(latents, grid)
        video_mask = jnp.ones(patches.shape[:2], bool)
        kv_valid = jnp.concatenate([video_mask, text_mask], axis=1)
        if axis is not None:
            patches = own_share(patches, axis, along=1)
            cos, sin = (own_share(table, axis, along=0) for table in (cos, sin))
        img = self.patch_embed(patches.astype(self.dtype))
        attention = attention or self.dense_attention
        return img, txt, Context(cos, sin, kv_valid, attention, self.kernels.rotary)

    def modulation(
        self,
        timesteps: Float[Array, " S"],
        pooled: Float[Array, "B P"],
        guidance: Float[Array, " B"] | None = None,
    ) -> Modulation:
        """All steps' modulation vectors at once: they depend on time, guidance and pooled text only.

        Returns:
            A `Modulation` whose leaves have a leading step axis; index it with
            `jax.tree.map(lambda leaf: leaf[step], table)` to get the row of one step.
        """
        steps, batch = timesteps.shape[0], pooled.shape[0]
        rows = self._modulation(  # steps as batch: the weights are read once for all of them
            jnp.repeat(timesteps, batch),
            jnp.tile(pooled, (steps, 1)),
            None if guidance is None else jnp.tile(guidance, steps),
        )

        def by_step(leaf: Array) -> Array:
            return jnp.moveaxis(leaf.reshape(*leaf.shape[:-2], steps, batch, -1), -3, 0)

        return jax.tree.map(by_step, rows)

    def conditioning(
        self,
        timestep: Float[Array, " B"],
        pooled: Float[Array, "B P"],
        guidance: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B D"]:
        """The input of every modulation layer: embedded time, guidance and pooled text, through a SiLU.

        Raises:
            InputError: guidance given to a model without it, or missing.
        """
        if self.config.guidance_embeds != (guidance is not None):
            raise InputError(
                "this model is guidance-distilled and needs guidance (1000 times the scale)"
                if guidance is None
                else "this model has no guidance embedder; pass guidance=None and use true CFG"
            )
        conditioning = self.time_embed(sinusoid(timestep))
        if guidance is not None:
            conditioning = conditioning + self.guidance_embed(sinusoid(guidance))
        return jax.nn.silu(conditioning + self.pooled_embed(pooled))

    def _modulation(self, timestep: Array, pooled: Array, guidance: Array | None) -> Modulation:
        active = self.conditioning(timestep, pooled, guidance)
        return Modulation(
            img=over_layers(self.double_blocks, lambda block: block.img.modulation(active)),
            txt=over_layers(self.double_blocks, lambda block: block.txt.modulation(active)),
            single=over_layers(self.single_blocks, lambda block: block.modulation(active)),
            final=self.final.modulation(active),
        )

    def _grid(self, latents: Array) -> tuple[int, int, int]:
        if latents.shape[1] != self.config.in_channels:
            raise InputError(
                f"latents have {latents.shape[1]} channels, the model takes {self.config.in_channels}"
            )
        sizes = latents.shape[2:]
        if any(size % patch for size, patch in zip(sizes, self.config.patch_size, strict=True)):
            raise InputError(
                f"latents of {sizes} (frames, height, width) are not divisible by the patch {self.config.patch_size}"
            )
        t, h, w = (size // patch for size, patch in zip(sizes, self.config.patch_size, strict=True))
        return t, h, w

    def _patchify(self, latents: Array, grid: tuple[int, int, int]) -> Array:
        """[B, C, T, H, W] -> [B, tokens, C * patch]; features in the order channel, time, height, width."""
        (t, h, w), (pt, ph, pw) = grid, self.config.patch_size
        x = latents.reshape(latents.shape[0], -1, t, pt, h, ph, w, pw)
        x = x.transpose(0, 2, 4, 6, 1, 3, 5, 7)
        return x.reshape(latents.shape[0], t * h * w, -1)

    def _unpatchify(self, tokens: Array, grid: tuple[int, int, int]) -> Array:
        """Inverse of `_patchify`."""
        (t, h, w), (pt, ph, pw) = grid, self.config.patch_size
        x = tokens.reshape(tokens.shape[0], t, h, w, -1, pt, ph, pw)
        x = x.transpose(0, 4, 1, 5, 2, 6, 3, 7)
        return x.reshape(tokens.shape[0], -1, t * pt, h * ph, w * pw)


def own_share(x: Array, axis: str, *, along: int) -> Array:
    """This device's share of an array that every device of a mesh axis holds whole.

    Raises:
        InputError: it does not divide.
    """
    count, length = jax.lax.axis_size(axis), x.shape[along]
    if length % count:
        raise InputError(
            f"{length:,} video tokens are not divisible among {count} devices; take another size, or another number of devices"
        )
    part = length // count
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * part, part, axis=along)


def _volume(patch: tuple[int, int, int]) -> int:
    return patch[0] * patch[1] * patch[2]
