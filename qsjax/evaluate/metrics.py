"""How far a video is from another: PSNR, SSIM and relative error, in float64 on the host.

SSIM is that of Wang et al. (IEEE Trans. Image Processing 13(4), 2004): windows of 11 x 11 pixels with Gaussian weights of
sigma 1.5, K1 = 0.01, K2 = 0.03, only windows that lie inside the picture, with the moments of the weights themselves. It is computed
for R, G and B and averaged, which is scikit-image's `structural_similarity` with `channel_axis=-1,
gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1`. (The paper looks at luma.)
"""

import numpy as np
from jaxtyping import Float, Num

from qsjax.errors import InputError

PSNR_CAP = 100.0
"""Decibels given to videos that are equal, or nearly: a mean squared error of 1e-10."""
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(
    videos: Num[np.ndarray, "B F Y X 3"], reference: Num[np.ndarray, "_ _ _ _ 3"]
) -> Float[np.ndarray, " B"]:
    """Peak signal-to-noise ratio of each pair of videos, of the mean squared error over all its frames, pixels and channels.

    Args:
        videos: float frames in [0, 1].
        reference: what they are compared with, of the same shape.

    Returns:
        Decibels, float64, at most 100.

    Raises:
        InputError: unlike shapes, frames that are not floats, or values that are not finite.
    """
    return _decibels(_frame_errors(videos, reference).mean(axis=1))


def frame_psnr(
    videos: Num[np.ndarray, "B F Y X 3"], reference: Num[np.ndarray, "_ _ _ _ 3"]
) -> Float[np.ndarray, " B"]:
    """The mean over frames of each frame's PSNR, as Sparse VideoGen's evaluation has it (arXiv:2502.01776).

    The logarithm is convex, so this is never lower than `psnr` (but for frames at the cap of 100 dB): a video with one broken frame
    looks better by it. Papers report one or the other; they differ by as much as methods do.

    Args:
        videos: float frames in [0, 1].
        reference: what they are compared with, of the same shape.

    Returns:
        Decibels, float64, at most 100.

    Raises:
        InputError: unlike shapes, frames that are not floats, or values that are not finite.
    """
    return psnr_by_frame(videos, reference).mean(axis=1)


def psnr_by_frame(
    videos: Num[np.ndarray, "B F Y X 3"], reference: Num[np.ndarray, "_ _ _ _ 3"]
) -> Float[np.ndarray, "B F"]:
    """The PSNR of each frame; arguments and errors as of `psnr`.

    Returns:
        Decibels, float64, at most 100.
    """
    return _decibels(_frame_errors(videos, reference))


def ssim(
    videos: Num[np.ndarray, "B F Y X 3"], reference: Num[np.ndarray, "_ _ _ _ 3"]
) -> Float[np.ndarray, " B"]:
    """Structural similarity of each pair of videos, the mean over frames and R, G and B.

    Args:
        videos: float frames in [0, 1], at least 11 x 11 pixels.
        reference: what they are compared with, of the same shape.

    Returns:
        float64, 1 where the two are equal.

    Raises:
        InputError: unlike shapes, frames that are not floats, values that are not finite, or too small frames.
    """
    _check(videos, reference)
    if min(videos.shape[2:4]) < SSIM_WINDOW:
        raise InputError(
            f"frames of {videos.shape[2]}x{videos.shape[3]} pixels: SSIM needs at least"
            f" {SSIM_WINDOW}x{SSIM_WINDOW}"
        )
    return np.array(
        [
            # A frame at a time: the five maps of a long video would not fit into memory.
            np.mean([_frame_ssim(x, y) for x, y in zip(video, target, strict=True)])
            for video, target in zip(videos, reference, strict=True)
        ]
    )


def relative_error(
    values: Float[np.ndarray, "B ..."],
    target: Float[np.ndarray, "B ..."],
    origin: Float[np.ndarray, "B ..."] | None = None,
) -> Float[np.ndarray, " B"]:
    """||values - target|| / ||target - origin||, the Euclidean norms over all axes but the first.

    Args:
        values: approximations.
        target: what they should be.
        origin: what targets are measured from; None is zero.

    Raises:
        InputError: `values` that are not finite.
    """
    if not np.isfinite(values).all():
        raise InputError("a model's output holds values that are not finite; it is broken")
    size = _wide(target) - (0.0 if origin is None else _wide(origin))
    return _norm(_wide(values) - _wide(target)) / np.maximum(_norm(size), 1e-30)


def _frame_errors(videos: np.ndarray, reference: np.ndarray) -> Float[np.ndarray, "B F"]:
    """Mean squared error of every frame."""
    _check(videos, reference)
    pairs = zip(videos, reference, strict=True)
    return np.stack(
        [np.square(_wide(video) - _wide(target)).mean(axis=(1, 2, 3)) for video, target in pairs]
    )


def _decibels(error: np.ndarray) -> np.ndarray:
    return -10 * np.log10(np.maximum(error, 10 ** (-PSNR_CAP / 10)))


def _norm(x: Float[np.ndarray, "B ..."]) -> Float[np.ndarray, " B"]:
    return np.sqrt(np.square(x).reshape(len(x), -1).sum(axis=1))


def _wide(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64)


def _gaussian() -> Float[np.ndarray, " window"]:
    """The window along one axis; its outer product with itself is the window of Wang et al."""
    at = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-np.square(at) / (2 * SSIM_SIGMA**2))
    return weights / weights.sum()


def _frame_ssim(x: Float[np.ndarray, "Y X 3"], y: Float[np.ndarray, "Y X 3"]) -> float:
    x, y = _wide(x), _wide(y)
    mean_x, mean_y, square_x, square_y, product = _windowed(np.stack([x, y, x * x, y * y, x * y]))
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2  # times the data range squared, which is 1
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    size = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float((likeness / size).mean())


def _windowed(maps: Float[np.ndarray, "M Y X 3"]) -> Float[np.ndarray, "M V U 3"]:
    """Weighted means over every window that lies inside."""
    weights = _gaussian()
    for axis in (1, 2):
        maps = np.lib.stride_tricks.sliding_window_view(maps, SSIM_WINDOW, axis=axis) @ weights
    return maps


def _check(videos: np.ndarray, reference: np.ndarray) -> None:
    if videos.shape != reference.shape or videos.ndim != 5 or not videos.size:
        raise InputError(
            f"videos of shape {list(videos.shape)} against {list(reference.shape)}: both must be the same"
            " [clips, frames, height, width, 3]"
        )
    if not all(np.issubdtype(each.dtype, np.floating) for each in (videos, reference)):
        raise InputError(
            f"frames of type {videos.dtype} and {reference.dtype}: give floats in [0, 1]"
        )
    if not (np.isfinite(videos).all() and np.isfinite(reference).all()):
        raise InputError(
            "frames hold values that are not finite; the model that made them is broken"
        )
