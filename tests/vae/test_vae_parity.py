"""Encode and decode against diffusers' AutoencoderKLHunyuanVideo in float32, whole and in tiles.

Sizes are chosen so that few shapes of tile occur, because each is a compilation; the arithmetic of the
tiles is tested over many sizes in test_vae_tiling.py.
"""

import jax
import pytest
from vae_pairs import CONFIGS, TOLERANCE, assert_close, decoded, encoded, latent, pair, use, video

from qsjax.vae import Tiling

# With latent sizes (frames, height, width) of a whole run and of one in tiles.
CASES = {
    "three levels, 4x4x4": (
        Tiling(frames=4, frame_stride=4, pixels=16, pixel_stride=12),
        (2, 3, 4),
        (3, 3, 5),
    ),
    "four levels, 4x8x8": (
        Tiling(frames=16, frame_stride=12, pixels=None, pixel_stride=None),
        (5, 3, 2),
        (8, 3, 2),
    ),
}
assert CASES.keys() == CONFIGS.keys()


@pytest.mark.parametrize("name", CASES)
def test_decode(name):
    theirs, ours = pair(name)
    tiling, whole, tiled = CASES[name]
    use(theirs, None)
    z = latent(ours.config, *whole)
    assert_close(ours.decode(z), decoded(theirs, z))

    z = latent(ours.config, *tiled)
    untiled = decoded(theirs, z)
    use(theirs, tiling)
    expected = decoded(theirs, z)
    assert abs(untiled - expected).max() > 1000 * TOLERANCE, "tiles make a difference to be seen"
    assert_close(ours.decode(z, tiling), expected)


@pytest.mark.parametrize("name", CASES)
def test_encode(name):
    theirs, ours = pair(name)
    tiling, whole, tiled = CASES[name]
    for shape, tiles in ((whole, None), (tiled, tiling)):
        use(theirs, tiles)
        x = video(ours.config, *shape)
        moments = ours.encode(x, tiles)
        mean, logvar = encoded(theirs, x)
        assert_close(moments.mean, mean)
        assert_close(moments.logvar, logvar)


def test_two_images_in_a_batch_inside_jit():
    theirs, ours = pair("three levels, 4x4x4")
    use(theirs, None)
    z = latent(ours.config, 1, 2, 3, batch=2)
    assert_close(jax.jit(lambda vae, z: vae.decode(z))(ours, z), decoded(theirs, z))
