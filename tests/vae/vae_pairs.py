"""The same random autoencoder twice: diffusers' module and ours, filled through the key table."""

from functools import cache

import diffusers
import jax
import numpy as np
import torch
from flax import nnx

from convert.keymaps import load_module
from qsjax.vae import VAE, Tiling, VAEConfig

CONFIGS = {
    "three levels, 4x4x4": VAEConfig(
        latent_channels=4,
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_compression_ratio=4,
    ),
    "four levels, 4x8x8": VAEConfig(
        latent_channels=3,
        block_out_channels=(3, 3, 6, 9),
        layers_per_block=1,
        norm_num_groups=3,
    ),
}
# Relative to the range of the output.
TOLERANCE = 1e-5


@cache
def pair(name: str) -> tuple[torch.nn.Module, VAE]:
    """diffusers' VAE and ours with the same weights; norms are perturbed too, as they start as the identity."""
    config = CONFIGS[name]
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLHunyuanVideo.from_config(config.to_diffusers()).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    weights = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = nnx.eval_shape(lambda: VAE(config, rngs=nnx.Rngs(1)))
    return theirs, load_module(ours, "vae", "hunyuan", weights, config)


def use(theirs: torch.nn.Module, tiling: Tiling | None) -> None:
    """Set diffusers' VAE to these tiles."""
    tiling = tiling or Tiling(frames=None, frame_stride=None, pixels=None, pixel_stride=None)
    theirs.use_framewise_decoding = theirs.use_framewise_encoding = tiling.frames is not None
    theirs.use_tiling = tiling.pixels is not None
    if tiling.frames is not None:
        theirs.tile_sample_min_num_frames = tiling.frames
        theirs.tile_sample_stride_num_frames = tiling.frame_stride
    if tiling.pixels is not None:
        theirs.tile_sample_min_height = theirs.tile_sample_min_width = tiling.pixels
        theirs.tile_sample_stride_height = theirs.tile_sample_stride_width = tiling.pixel_stride


def decoded(theirs: torch.nn.Module, z: np.ndarray) -> np.ndarray:
    """Decode with diffusers."""
    with torch.no_grad():
        return theirs.decode(torch.from_numpy(z)).sample.numpy()


def encoded(theirs: torch.nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode with diffusers to mean and log-variance."""
    with torch.no_grad():
        found = theirs.encode(torch.from_numpy(x)).latent_dist
    return found.mean.numpy(), found.logvar.numpy()


def latent(config: VAEConfig, *shape: int, batch: int = 1) -> np.ndarray:
    """A random latent of (frames, height, width)."""
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal((batch, config.latent_channels, *shape), np.float32)


def video(config: VAEConfig, *shape: int, batch: int = 1) -> np.ndarray:
    """A random video whose latent has (frames, height, width)."""
    rng = np.random.default_rng(sum(shape))
    sizes = (batch, config.in_channels, *config.video_shape(*shape))
    return rng.uniform(-1, 1, sizes).astype(np.float32)


def assert_close(found: jax.Array | np.ndarray, expected: np.ndarray) -> None:
    """Equal within the tolerance."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.ptp(expected))
