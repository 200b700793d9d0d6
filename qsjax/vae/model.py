"""HunyuanVideo's autoencoder: video in, latent Gaussian out, and back."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.vae.coder import Decoder, Encoder
from qsjax.vae.config import VAEConfig
from qsjax.vae.layers import Conv
from qsjax.vae.moments import Moments
from qsjax.vae.shapes import check_latent, check_video
from qsjax.vae.tiling import Tiling


class VAE(nnx.Module):
    """Causal 3-D VAE of HunyuanVideo (arXiv:2412.03603), diffusers' `AutoencoderKLHunyuanVideo`.

    Args:
        config: the sizes.
        dtype: parameters and convolutions; norm statistics and the softmax are float32 whatever it is.
        rngs: initial values.
    """

    def __init__(
        self, config: VAEConfig, *, dtype: jnp.dtype | type = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        kind, latent = jnp.dtype(dtype), config.latent_channels
        self.config = config
        self.encoder = Encoder(config, dtype=kind, rngs=rngs)
        self.decoder = Decoder(config, dtype=kind, rngs=rngs)
        self.quant_conv = Conv(2 * latent, 2 * latent, 1, dtype=kind, rngs=rngs)
        self.post_quant_conv = Conv(latent, latent, 1, dtype=kind, rngs=rngs)

    def encode(self, x: Float[Array, "B 3 F H W"], tiling: Tiling | None = None) -> Moments:
        """Encode a video.

        Args:
            x: values in [-1, 1]; 4k+1 frames, sides divisible by the spatial compression.
            tiling: None encodes in one pass, which is pure and works inside `jax.jit`.

        Raises:
            InputError: sizes the VAE does not take; the message names the nearest ones it does.
        """
        check_video(x.shape, self.config)
        return split_moments(self.encode_tile(x))

    def decode(
        self,
        z: Float[Array, "B C T h w"],
        tiling: Tiling | None = None,
        progress: bool = False,
    ) -> Float[Array, "B 3 F H W"]:
        """Decode a latent.

        Args:
            z: latent, already divided by the scaling factor.
            tiling: None decodes in one pass, which is pure and works inside `jax.jit`.
            progress: show a bar over the tiles.

        Returns:
            float32 video of 4 (T - 1) + 1 frames, about [-1, 1], not clipped.

        Raises:
            InputError: `z` has another number of channels, or `tiling` does not fit the compression.
        """
        check_latent(z.shape, self.config)
        return self.decode_tile(z)

    def encode_tile(self, x: Float[Array, "B 3 F H W"]) -> Float[Array, "B moments T h w"]:
        """One pass of encoder and `quant_conv`: mean and log-variance in the channels, float32."""
        y = self.quant_conv(self.encoder(_channels_last(x, self.quant_conv)))
        return jnp.moveaxis(y, -1, 1).astype(jnp.float32)

    def decode_tile(self, z: Float[Array, "B C T h w"]) -> Float[Array, "B 3 F H W"]:
        """One pass of `post_quant_conv` and decoder, float32."""
        y = self.decoder(self.post_quant_conv(_channels_last(z, self.post_quant_conv)))
        return jnp.moveaxis(y, -1, 1).astype(jnp.float32)


def split_moments(y: Float[Array, "B moments T h w"]) -> Moments:
    """Mean and clamped log-variance out of the encoder's channels."""
    mean, logvar = jnp.split(y, 2, axis=1)
    return Moments(mean, jnp.clip(logvar, -30.0, 20.0))


def _channels_last(x: Array, like: Conv) -> Array:
    return jnp.moveaxis(x, 1, -1).astype(like.kernel.get_value().dtype)
