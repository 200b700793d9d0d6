"""Metrics against slow definitions, and paired statistics."""

import numpy as np
import pytest

from qsjax.errors import InputError
from qsjax.evaluate import estimate, paired, psnr, relative_error, ssim


def slow_ssim(x, y):
    """Wang et al. window by window, on one channel; scikit-image's definition with Gaussian weights of the population."""
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, values = 0.01**2, 0.03**2, []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (each[top : top + 11, left : left + 11] for each in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a = (window * (a - mean_a) ** 2).sum()
            variance_b = (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
            )
    return np.mean(values)


def clips(seed, shape=(2, 3, 13, 15, 3)):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_is_its_definition(noise):
    videos = clips(0)
    others = np.clip(videos + noise * (clips(1) - 0.5), 0, 1)
    expected = [
        np.mean(
            [
                slow_ssim(one[..., c].astype(np.float64), other[..., c].astype(np.float64))
                for one, other in zip(video, changed, strict=True)
                for c in range(3)
            ]
        )
        for video, changed in zip(videos, others, strict=True)
    ]
    np.testing.assert_allclose(ssim(others, videos), expected, rtol=1e-10)
    np.testing.assert_allclose(ssim(videos, others), ssim(others, videos), rtol=1e-12)
    assert ssim(others, videos).dtype == np.float64


def test_ssim_of_what_is_known():
    videos = clips(0, (1, 2, 11, 11, 3))
    assert ssim(videos, videos) == pytest.approx(1)
    # Plain pictures have no variance: only their brightness counts.
    plain, brighter = np.full_like(videos, 0.5), np.full_like(videos, 0.6)
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(ssim(brighter, plain), expected, rtol=1e-6)


def test_psnr():
    videos = np.zeros((3, 2, 4, 4, 3), np.float32)
    videos[1] = 0.1
    videos[2, 0] = 0.2  # half of the frames: the mean is taken before the logarithm
    found = psnr(videos, np.zeros_like(videos))
    np.testing.assert_allclose(found, [100, 20, -10 * np.log10(0.02)], rtol=1e-6)
    assert found.dtype == np.float64


def test_relative_error():
    target = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    given = target + np.array([[0.0, 0.5], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(relative_error(given, target), [0.1, 0])
    origin = np.array([[3.0, 3.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(relative_error(given, target, origin), [0.5, 0])
    with pytest.raises(InputError, match="not finite"):
        relative_error(np.full_like(target, np.inf), target)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_cannot_be_compared(metric):
    videos = clips(0)
    with pytest.raises(InputError, match="not finite"):
        metric(np.where(videos > 0.5, np.float32(np.nan), videos), videos)
    for others in (videos[:, :2], videos[:1], videos[:0]):
        with pytest.raises(InputError, match="must be the same"):
            metric(others, videos)
    with pytest.raises(InputError, match="floats in"):
        metric(np.round(videos * 255).astype(np.uint8), videos)


def test_ssim_needs_a_window():
    small = clips(0, (1, 1, 11, 10, 3))
    with pytest.raises(InputError, match="at least 11x11"):
        ssim(small, small)


def test_estimates():
    found = estimate(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.mean == 3
    assert found.error == pytest.approx(np.sqrt(14 / 3) / 2)
    assert (found.lowest, found.count) == (1, 4)
    assert estimate(np.array([2.0])).error is None
    with pytest.raises(InputError, match="at least one"):
        estimate(np.zeros(0))


def test_a_paired_difference_is_surer_than_two_means():
    clip = np.random.default_rng(0).normal(20, 4, 32)
    better = clip + np.random.default_rng(1).normal(0.3, 0.1, 32)
    found = paired(better, clip)
    assert found.mean == pytest.approx(0.3, abs=0.1)
    assert 10 * found.error < estimate(clip).error
    with pytest.raises(InputError, match="same clips"):
        paired(clip, clip[:3])
