"""Fitting the map to colours: synthetic clips are encoded by the autoencoder at hand, once; the result is kept in the user's cache."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from qsjax.cache import cache_directory
from qsjax.disk import DiskError, write_atomically, writing
from qsjax.errors import QsjaxError
from qsjax.preview.colours import Colours
from qsjax.progress import Progress
from qsjax.untrusted import read_object
from qsjax.untrusted.files import SMALL
from qsjax.vae import VAE, VAEConfig

logger = logging.getLogger(__name__)

_CLIPS, _CELLS, _LATENT_FRAMES = 24, 16, 2
"""Clips, and cells along each side of one: 12,288 cells for the 17 coefficients of a colour."""
_WAVES, _DISCS = 3, 3


def colours_of(
    config: VAEConfig, digest: str, vae: Callable[[], VAE], *, progress: bool = False
) -> Colours:
    """The map of an autoencoder: from the cache, else fitted.

    Args:
        config: its sizes.
        digest: sha256 of its configuration and weights.
        vae: loads it, if it is needed.
        progress: show a bar while it encodes.
    """
    place = cache_directory() / "previews" / f"{digest}.json"
    try:
        return Colours.of_plain(read_object(place, SMALL), config.latent_channels)
    except QsjaxError:
        pass  # not there, or damaged: made again
    fitted = fit_colours(vae(), progress=progress)
    _keep(place, fitted)
    return fitted


def fit_colours(vae: VAE, *, progress: bool = False) -> Colours:
    """Encode clips of waves and moving discs, and fit the mean colour of every cell to its latent.

    Args:
        vae: the autoencoder.
        progress: show a bar.
    """
    config, noise = vae.config, np.random.default_rng(0)
    frames, side, _ = config.video_shape(_LATENT_FRAMES, _CELLS, _CELLS)
    latents, colours = [], []
    with Progress(_CLIPS, "fit preview", unit="clip", enabled=progress) as bar:
        for _ in range(_CLIPS):  # one at a time: the encoder of a large model takes much memory
            clip = _clip(noise, frames, side)
            moments = vae.encode(clip[None])
            latents.append(np.asarray(moments.mode(), np.float32) * config.scaling_factor)
            colours.append(_means(clip, config)[None])
            bar.advance()
    return Colours.fitted(np.concatenate(latents), np.concatenate(colours))


def _clip(noise: np.random.Generator, frames: int, side: int) -> Float[np.ndarray, "3 F H W"]:
    """A ground of a few waves in every colour, and discs that move over it; values in [-1, 1]."""
    t, y, x = np.meshgrid(
        np.linspace(0, 1, frames),
        np.linspace(-1, 1, side),
        np.linspace(-1, 1, side),
        indexing="ij",
    )
    video = np.repeat(noise.uniform(-1, 1, 3), t.size).reshape(3, *t.shape)
    for _ in range(_WAVES):
        across, down, over, phase = noise.uniform(-6, 6, 4)
        wave = np.sin(across * x + down * y + over * t + phase)
        video += noise.uniform(-0.3, 0.3, (3, 1, 1, 1)) * wave
    for _ in range(_DISCS):
        left, top, right, down = noise.uniform(-1, 1, 4)
        inside = np.hypot(x - left - right * t, y - top - down * t) < noise.uniform(0.15, 0.5)
        video[:, inside] = noise.uniform(-1, 1, (3, 1))
    return np.clip(video, -1, 1).astype(np.float32)


def _means(clip: Float[np.ndarray, "3 F H W"], config: VAEConfig) -> Float[np.ndarray, "3 T h w"]:
    """The mean colour of what each latent cell stands for: the first frame alone, then four at a time."""
    times, cell = config.temporal_compression_ratio, config.spatial_compression_ratio
    _, frames, height, width = clip.shape
    first = clip[:, :1]
    rest = clip[:, 1:].reshape(3, (frames - 1) // times, times, height, width).mean(axis=2)
    both = np.concatenate([first, rest], axis=1)
    cells = both.reshape(3, both.shape[1], height // cell, cell, width // cell, cell)
    return cells.mean(axis=(3, 5))


def _keep(place: Path, fitted: Colours) -> None:
    try:
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(fitted.plain()).encode())
    except DiskError as error:
        logger.warning("%s", error)  # the next run fits it again
