"""The latent space of the tiny model: a fixed linear one, agreed on before anything is trained.

A latent cell holds the 16 strongest principal components of its block of 4 frames x 4 x 4 pixels, with the first
frame of a clip standing for four (the VAE is causal). The VAE learns to compute these latents and to decode them,
the DiT to generate them: both train at the same time, and the DiT on endless fresh clips that need
no encoder. Channels are half-whitened: fully whitened, the loss would be spent on channels that are invisible.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qsjax.errors import CheckpointError, InputError
from qsjax.tiny import data
from qsjax.tiny.scenes import uniforms

CHANNELS = 16
CELL = 4
BLOCK = CELL**3 * 3
_CLIPS, _READ_CLIPS = 256, 96


class Basis(NamedTuple):
    """The linear map between blocks and latent cells.

    Attributes:
        mean: [192], float32, of a block ordered (frame, row, column, colour).
        forward: [192, 16], float32: latent = (block - mean) @ forward.
        backward: [16, 192], float32: block = latent @ backward + mean.
    """

    mean: np.ndarray
    forward: np.ndarray
    backward: np.ndarray


def fit(seed: int, clips: int = _CLIPS) -> Basis:
    """Principal components of the blocks of `clips` clips (33 frames, 64 x 64 pixels) of the stream of `seed`."""
    mean, covariance = _moments(_blocks(data.clip(seed, index)[0]) for index in range(clips))
    values, vectors = np.linalg.eigh(covariance)
    spread = np.sqrt(values[::-1][:CHANNELS])
    vectors = vectors[:, ::-1][:, :CHANNELS]
    # Eigenvectors have no sign of their own; sums of entries would not give one, many are nearly zero.
    vectors = vectors * np.sign((uniforms(0, 0, BLOCK) - 0.5) @ vectors)
    scale = 1 / np.sqrt(spread)
    scale = scale / np.sqrt(np.mean((scale * spread) ** 2))  # all channels together have variance 1
    return _basis(mean, vectors, scale)


def read_off(
    encode: Callable[[np.ndarray], np.ndarray], seed: int, clips: int = _READ_CLIPS
) -> Basis:
    """The basis that a trained encoder has learned, so that its DiT can be trained further.

    Least squares from blocks to latents, within the strongest components of the blocks (the others are too weak to
    tell anything), then the nearest orthogonal directions.

    Args:
        encode: video [3, F, H, W] -> latents [16, T, h, w].
        seed: of the stream of clips.
        clips: how many.
    """

    def rows(index: int) -> np.ndarray:
        video = data.clip(seed, index)[0]
        return np.concatenate([_blocks(video), np.moveaxis(encode(video), 0, -1)], axis=-1)

    mean, covariance = _moments(rows(index) for index in range(clips))
    values, vectors = np.linalg.eigh(covariance[:BLOCK, :BLOCK])
    values, vectors = values[-2 * CHANNELS :], vectors[:, -2 * CHANNELS :]
    slopes = vectors @ (vectors.T @ covariance[:BLOCK, BLOCK:] / values[:, None])
    scale = np.linalg.norm(slopes, axis=0)
    left, _, right = np.linalg.svd(slopes / scale, full_matrices=False)
    directions = left @ right
    return _basis(mean[:BLOCK] - (directions / scale) @ mean[BLOCK:], directions, scale)


def encode(
    basis: Basis, video: Float[np.ndarray, "3 frames height width"]
) -> Float[np.ndarray, "channels cells_t cells_h cells_w"]:
    """Latents of a video of 4k+1 frames whose sides are multiples of 4.

    Raises:
        InputError: another size.
    """
    return np.moveaxis((_blocks(video) - basis.mean) @ basis.forward, -1, 0)


def decode(
    basis: Basis, latents: Float[np.ndarray, "channels cells_t cells_h cells_w"]
) -> Float[np.ndarray, "3 frames height width"]:
    """The best linear, block by block reconstruction; what the VAE's decoder improves on."""
    rows = np.moveaxis(latents, 0, -1) @ basis.backward + basis.mean
    t, h, w = rows.shape[:3]
    video = rows.reshape(t, h, w, CELL, CELL, CELL, 3).transpose(6, 0, 3, 1, 4, 2, 5)
    return video.reshape(3, t * CELL, h * CELL, w * CELL)[:, CELL - 1 :]


def save(path: Path, basis: Basis) -> None:
    """Write the basis as .npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **basis._asdict())


def load(path: Path) -> Basis:
    """Read a basis.

    Raises:
        CheckpointError: the file is absent.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: does not exist; run `stage='data'` first")
    with np.load(path) as arrays:
        return Basis(**{name: arrays[name] for name in Basis._fields})


def _basis(mean: np.ndarray, directions: np.ndarray, scale: np.ndarray) -> Basis:
    """Of orthonormal directions [192, 16] and the factor of each."""
    return Basis(
        mean.astype(np.float32),
        (directions * scale).astype(np.float32),
        (directions / scale).T.astype(np.float32),
    )


def _moments(clips: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the last axis over all else, in float64."""
    count, total, products = 0, np.zeros(()), np.zeros(())
    for clip in clips:
        rows = clip.reshape(-1, clip.shape[-1]).astype(np.float64)
        count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
    mean = total / count
    return mean, products / count - np.outer(mean, mean)


def _blocks(video: np.ndarray) -> np.ndarray:
    """[3, 4k+1, H, W] -> [k+1, H/4, W/4, 192]; the first frame is repeated to fill its block."""
    _, frames, height, width = video.shape
    if frames % CELL != 1 or height % CELL or width % CELL:
        raise InputError(
            f"a clip of {frames}x{height}x{width} has no latents; frames must be 4k+1 and sides multiples of 4"
        )
    padded = np.concatenate([np.repeat(video[:, :1], CELL - 1, axis=1), video], axis=1)
    t, h, w = padded.shape[1] // CELL, height // CELL, width // CELL
    parts = padded.reshape(3, t, CELL, h, CELL, w, CELL).transpose(1, 3, 5, 2, 4, 6, 0)
    return parts.reshape(t, h, w, -1)
