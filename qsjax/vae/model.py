"""HunyuanVideo's autoencoder: video in, latent Gaussian out, and back."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.stages import Lowered
from jaxtyping import Array, Float

from qsjax.errors import InputError
from qsjax.progress import Progress
from qsjax.vae.blending import Network, TilePlan, run_in_tiles
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

    def encode(
        self,
        x: Float[Array | np.ndarray, "B colours F H W"],
        tiling: Tiling | None = None,
        progress: bool = False,
    ) -> Moments:
        """Encode a video.

        Args:
            x: values in [-1, 1]; 4k+1 frames, sides divisible by the spatial compression.
            tiling: None encodes in one pass, which is pure and works inside `jax.jit`.
            progress: show a bar over the tiles.

        Raises:
            InputError: sizes the VAE does not take (the message names the nearest ones it does), or
                tiles inside `jax.jit`.
        """
        check_video(x.shape, self.config)
        if tiling is None:
            return _moments(_encode_tile(self, x))
        plan = tiling.encode_plan(self.config)
        pieces = _pieces(lambda tile: _encode_tile(self, tile), x, plan, "encode", progress)
        return _moments(jax.device_put(np.concatenate(list(pieces), axis=2)))

    def decode(
        self,
        z: Float[Array | np.ndarray, "B C T h w"],
        tiling: Tiling | None = None,
        progress: bool = False,
    ) -> Float[Array, "B colours F H W"]:
        """Decode a latent.

        Args:
            z: latent, already divided by the scaling factor.
            tiling: None decodes in one pass, which is pure and works inside `jax.jit`.
            progress: show a bar over the tiles.

        Returns:
            float32 video of 4 (T - 1) + 1 frames, about [-1, 1], not clipped.

        Raises:
            InputError: `z` has another number of channels, `tiling` does not fit the compression, or
                tiles inside `jax.jit`.
        """
        if tiling is None:
            check_latent(z.shape, self.config)
            return _decode_tile(self, z)
        shape = self.config.video_shape(*z.shape[2:])
        video = np.empty((z.shape[0], self.config.out_channels, *shape), np.float32)
        done = 0
        for piece in self.decode_pieces(z, tiling, progress):
            video[:, :, done : done + piece.shape[2]] = piece
            done += piece.shape[2]
        return jax.device_put(video)

    def decode_pieces(
        self,
        z: Float[Array | np.ndarray, "B C T h w"],
        tiling: Tiling,
        progress: bool = False,
        devices: Sequence[jax.Device] = (),
        decode: Callable[["VAE", Array | np.ndarray], Array] | None = None,
    ) -> Iterator[Float[np.ndarray, "B colours F2 H W"]]:
        """Decode in tiles, and yield the video on the host in pieces along time, each as soon as it is final.

        Args:
            z, tiling, progress: as of `decode`.
            devices: used in turn, each with a copy of the weights; empty is the default device.
            decode: decodes one tile, as the compiled results of `lower_tile` do; None compiles each shape when it comes.

        Raises:
            InputError: as `decode`.
        """
        check_latent(z.shape, self.config)
        plan = tiling.decode_plan(self.config)
        run = _decode_tile if decode is None else decode
        if not devices:
            return _pieces(lambda tile: run(self, tile), z, plan, "decode", progress)
        turns = cycle([(device, jax.device_put(self, device)) for device in devices])

        def network(tile: np.ndarray) -> Array:
            device, mine = next(turns)
            return run(mine, jax.device_put(tile, device))

        return _pieces(network, z, plan, "decode", progress, ahead=len(devices) - 1)

    def encode_tile(
        self, x: Float[Array | np.ndarray, "B colours F H W"]
    ) -> Float[Array, "B moments T h w"]:
        """One pass of encoder and `quant_conv`: mean and log-variance in the channels, float32."""
        y = self.quant_conv(self.encoder(_channels_last(x, self.quant_conv)))
        return jnp.moveaxis(y, -1, 1).astype(jnp.float32)

    def decode_tile(
        self, z: Float[Array | np.ndarray, "B C T h w"]
    ) -> Float[Array, "B colours F H W"]:
        """One pass of `post_quant_conv` and decoder, float32."""
        y = self.decoder(self.post_quant_conv(_channels_last(z, self.post_quant_conv)))
        return jnp.moveaxis(y, -1, 1).astype(jnp.float32)

    def lower_tile(self, tile: jax.ShapeDtypeStruct) -> Lowered:
        """Trace the decoding of one tile [B, C, T, h, w]; the compiled result takes a VAE and a tile.

        The VAE may be abstract.
        """
        return _decode_tile.lower(self, tile)


# The jit boundaries: one program for each shape of tile. Inside a caller's jit they are inlined.
@jax.jit
def _encode_tile(vae: VAE, x: Array | np.ndarray) -> Array:
    return vae.encode_tile(x)


@jax.jit
def _decode_tile(vae: VAE, z: Array | np.ndarray) -> Array:
    return vae.decode_tile(z)


def _pieces(
    network: Network,
    x: Array | np.ndarray,
    plan: TilePlan,
    label: str,
    progress: bool,
    ahead: int = 0,
) -> Iterator[np.ndarray]:
    if isinstance(x, jax.core.Tracer):
        raise InputError(
            f"{label} in tiles was asked for inside jax.jit, but tiles are joined on the host;"
            f" call it outside, or with tiling=None"
        )
    return _with_bar(network, np.asarray(x), plan, label, progress, ahead)


def _with_bar(
    network: Network, x: np.ndarray, plan: TilePlan, label: str, progress: bool, ahead: int
) -> Iterator[np.ndarray]:
    with Progress(plan.count(x.shape), label, unit="tile", enabled=progress) as bar:
        yield from run_in_tiles(network, x, plan, bar, ahead)


def _moments(y: Float[Array, "B moments T h w"]) -> Moments:
    mean, logvar = jnp.split(y, 2, axis=1)
    return Moments(mean, jnp.clip(logvar, -30.0, 20.0))


def _channels_last(x: Array | np.ndarray, like: Conv) -> Array:
    return jnp.moveaxis(jnp.asarray(x), 1, -1).astype(like.kernel.get_value().dtype)
