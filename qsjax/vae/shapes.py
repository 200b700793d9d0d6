"""Which videos and latents the VAE takes, and what to say about others."""

from qsjax.errors import InputError
from qsjax.vae.config import VAEConfig


def check_video(shape: tuple[int, ...], config: VAEConfig) -> None:
    """Refuse a video [B, colours, F, H, W] that the encoder cannot take.

    Raises:
        InputError: wrong number of colours, frames not 4k+1, or sides not divisible by the compression.
    """
    _, channels, frames, height, width = shape
    if channels != config.in_channels:
        raise InputError(
            f"video {list(shape)} has {channels} channels, the VAE encodes {config.in_channels};"
            f" give [batch, {config.in_channels}, frames, height, width]"
        )
    ratio = config.temporal_compression_ratio
    if frames < 1 or (frames - 1) % ratio:
        valid = max(0, round((frames - 1) / ratio)) * ratio + 1
        raise InputError(
            f"video has {frames} frames, the VAE encodes {ratio}k+1; the nearest valid number is {valid}"
        )
    ratio = config.spatial_compression_ratio
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % ratio:
            valid = max(1, round(size / ratio)) * ratio
            raise InputError(
                f"video has {name} {size}, the VAE encodes multiples of {ratio}; the nearest valid one is {valid}"
            )


def check_latent(shape: tuple[int, ...], config: VAEConfig) -> None:
    """Refuse a latent [B, C, T, h, w] that the decoder cannot take.

    Raises:
        InputError: wrong number of channels, or an empty axis.
    """
    if shape[1] != config.latent_channels or 0 in shape:
        raise InputError(
            f"latent {list(shape)} cannot be decoded;"
            f" give [batch, {config.latent_channels}, frames, height, width], none of them empty"
        )
