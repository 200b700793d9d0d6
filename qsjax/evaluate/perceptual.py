"""LPIPS (Zhang et al., arXiv:1801.03924): the distance of frames in the features of a network for images. Needs the extra `lpips`.

The package `lpips` is PyTorch and brings the weights of its last layers; those of its network, AlexNet, are fetched by torchvision when it is first made.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from qsjax.address import install
from qsjax.errors import InputError

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Pairs of images, float32 [N, 3, Y, X] in [-1, 1] -> N distances."""
IMAGES = 16
"""Frames at once: memory grows with them."""


def lpips(
    videos: Float[np.ndarray, "B F Y X 3"],
    reference: Float[np.ndarray, "B F Y X 3"],
    *,
    distance: Distance | None = None,
) -> Float[np.ndarray, " B"]:
    """LPIPS of each pair of videos, the mean over frames; 0 where they are equal.

    Args:
        videos: frames in [0, 1].
        reference: what they are compared with.
        distance: of pairs of images; None is the package's, with AlexNet.

    Returns:
        float64.

    Raises:
        InputError: the package, or the weights of its network, are not there.
    """
    measure = distance or require_lpips()
    return np.array(
        [_mean_over_frames(measure, *pair) for pair in zip(videos, reference, strict=True)],
        np.float64,
    )


@lru_cache(maxsize=1)
def require_lpips() -> Distance:
    """The package's distance with AlexNet; call it before the work that is measured.

    Raises:
        InputError: the package, or the weights of its network, are not there.
    """
    try:
        import lpips as package
        import torch
    except ImportError:
        raise InputError(f"LPIPS needs PyTorch and lpips: {install('lpips')}") from None
    try:
        network: Any = package.LPIPS(net="alex", verbose=False)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"LPIPS: the weights of AlexNet are neither here nor can they be fetched ({error})"
        ) from error

    def distance(images: np.ndarray, others: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = network(torch.from_numpy(images), torch.from_numpy(others))
        return found.numpy().reshape(-1)

    return distance


def _mean_over_frames(measure: Distance, video: np.ndarray, target: np.ndarray) -> float:
    images, others = (_images(frames) for frames in (video, target))
    parts = [
        measure(images[at : at + IMAGES], others[at : at + IMAGES])
        for at in range(0, len(images), IMAGES)
    ]
    return float(np.concatenate(parts).astype(np.float64).mean())


def _images(frames: Float[np.ndarray, "F Y X 3"]) -> Float[np.ndarray, "F 3 Y X"]:
    return np.ascontiguousarray(2 * np.moveaxis(frames, -1, 1).astype(np.float32) - 1)
