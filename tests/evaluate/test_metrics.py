"""Metrics against slow definitions, and paired statistics."""

import numpy as np
import pytest

from qsjax.errors import InputError
from qsjax.evaluate import estimate, frame_psnr, paired, psnr, relative_error, ssim
from qsjax.evaluate.statistics import estimate_over_seeds, paired_over_seeds


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


def test_frame_psnr():
    videos = np.zeros((2, 2, 4, 4, 3), np.float32)
    videos[0] = 0.1
    videos[1, 0], videos[1, 1] = 0.2, 0.1
    found = frame_psnr(videos, np.zeros_like(videos))
    np.testing.assert_allclose(found, [20, (20 - 10 * np.log10(0.04)) / 2], rtol=1e-6)


def test_frame_psnr_is_never_lower():
    videos, others = clips(0, (6, 5, 4, 4, 3)), clips(1, (6, 5, 4, 4, 3))
    weight = np.random.default_rng(2).random((6, 5, 1, 1, 1)).astype(np.float32) ** 4
    changed = videos + weight * (others - videos)
    assert (frame_psnr(changed, videos) > psnr(changed, videos)).all()


def test_relative_error():
    target = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    given = target + np.array([[0.0, 0.5], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(relative_error(given, target), [0.1, 0])
    origin = np.array([[3.0, 3.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(relative_error(given, target, origin), [0.5, 0])
    with pytest.raises(InputError, match="not finite"):
        relative_error(np.full_like(target, np.inf), target)


@pytest.mark.parametrize("metric", [psnr, frame_psnr, ssim])
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


def drawn(of_seeds, of_clips, rest, seeds=3, clips=32, runs=4000):
    """Experiments of the model of `qsjax.evaluate.statistics`, of the mean 5, with these standard deviations."""
    random = np.random.default_rng(0)
    by_seed = of_seeds * random.normal(size=(runs, seeds, 1))
    by_clip = of_clips * random.normal(size=(runs, 1, clips))
    return 5 + by_seed + by_clip + rest * random.normal(size=(runs, seeds, clips))


@pytest.mark.parametrize(
    ("of_seeds", "of_clips", "rest"),
    [(1.0, 3.0, 0.5), (0.2, 4.0, 0.2), (2.0, 0.1, 0.1), (0.3, 1.0, 3.0)],
)
def test_the_error_is_that_of_another_calibration_and_other_clips(of_seeds, of_clips, rest):
    found = [estimate_over_seeds(values) for values in drawn(of_seeds, of_clips, rest)]
    truth = of_seeds**2 / 3 + of_clips**2 / 32 + rest**2 / 96
    # What is claimed is what the means really do, and nowhere less.
    assert np.var([one.mean for one in found]) == pytest.approx(truth, rel=0.1)
    assert 0.95 * truth < np.mean([one.error**2 for one in found]) < 1.25 * truth


def test_variances_of_which_neither_part_explains_the_other():
    """Nothing but the interaction: seen from seeds and from clips it is the same variance, which counts once."""
    found = [estimate_over_seeds(values) for values in drawn(0.0, 0.0, 3.0)]
    # The sum of both would be 2; a part that is cut off at zero makes it a little too careful.
    assert 1.0 < np.mean([one.error**2 for one in found]) / (9 / 96) < 1.5


def test_clips_alone_do_not_know_what_another_calibration_would_do():
    values = drawn(1.0, 0.5, 0.1)
    alone = [estimate(experiment[0]).error ** 2 for experiment in values]
    assert np.mean(alone) < 0.02
    assert np.var([experiment[0].mean() for experiment in values]) > 0.9


def test_by_hand():
    found = estimate_over_seeds(np.array([[1.0, 3.0], [2.0, 4.0]]))
    # No interaction; seeds' means 2 and 3, clips' means 1.5 and 3.5: variances 0.5 and 2, over two of each.
    assert found.error == pytest.approx(np.sqrt(0.25 + 1.0))
    assert (found.mean, found.lowest, found.count, found.seeds) == (2.5, 1.0, 2, 2)
    assert estimate_over_seeds(np.array([[1.0], [2.0]])).error is None
    one = np.random.default_rng(0).normal(size=8)
    assert estimate_over_seeds(one[None]) == estimate(one)


def test_differences_are_paired_by_seed_and_by_clip():
    base = drawn(1.0, 3.0, 0.0, runs=1)[0]
    better = base + 0.5 + 0.01 * np.random.default_rng(1).normal(size=base.shape)
    found = paired_over_seeds(better, base)
    assert found.mean == pytest.approx(0.5, abs=0.01)
    assert found.error < 0.01 < estimate_over_seeds(better).error
    fixed = paired_over_seeds(better, base[:1])  # a baseline without a calibration
    assert fixed.error > 0.1
    assert fixed.seeds == 3
    with pytest.raises(InputError, match="same seeds"):
        paired_over_seeds(better, base[:2])
    with pytest.raises(InputError, match="same clips"):
        paired_over_seeds(better, base[:, :3])
