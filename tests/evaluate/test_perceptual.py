"""LPIPS: what is asked of the package, with a stand-in for it and its weights."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qsjax.errors import InputError
from qsjax.evaluate.perceptual import IMAGES, lpips, require_lpips


@pytest.fixture(autouse=True)
def forgotten():
    require_lpips.cache_clear()
    yield
    require_lpips.cache_clear()


class Network:
    """The package's interface: images [N, 3, Y, X] in [-1, 1] -> [N, 1, 1, 1]. Its distance is the mean squared difference."""

    def __init__(self, net, verbose):
        assert (net, verbose) == ("alex", False)
        self.calls = []

    def __call__(self, images, others):
        assert images.dtype == others.dtype == torch.float32
        assert -1 <= images.min() <= images.max() <= 1
        self.calls.append(tuple(images.shape))
        return torch.mean((images - others) ** 2, dim=(1, 2, 3), keepdim=True)


def videos(seed, frames):
    return np.random.default_rng(seed).random((2, frames, 4, 6, 3)).astype(np.float32)


def test_a_mean_over_frames_of_images_in_the_range_of_the_network(monkeypatch):
    made = []

    def network(**options):
        made.append(Network(**options))
        return made[-1]

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=network))
    one, other = videos(0, IMAGES + 3), videos(1, IMAGES + 3)
    expected = 4 * np.square(one - other).mean(
        axis=(1, 2, 3, 4)
    )  # [-1, 1] is twice as wide as [0, 1]
    found = lpips(one, other)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(lpips(one, one), 0)
    assert len(made) == 1  # made once, used for all clips
    assert made[0].calls[:2] == [(IMAGES, 3, 4, 6), (3, 3, 4, 6)]


def test_the_package_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"pip install '\.\[lpips\]'"):
        lpips(videos(0, 1), videos(1, 1))


def test_the_weights_are_not_there(monkeypatch):
    def offline(**_):
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline))
    with pytest.raises(InputError, match=r"weights of AlexNet .*no network"):
        require_lpips()
