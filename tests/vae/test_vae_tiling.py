"""The arithmetic of tiles against diffusers' own, with a cheap network in place of the convolutions."""

import logging
from dataclasses import replace
from itertools import count, pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import monitoring
from vae_pairs import CONFIGS, decoded, encoded, latent, pair, use, video

from pallas_kernels import targets
from qsjax.errors import InputError
from qsjax.progress import Progress
from qsjax.vae import Tiling, VAEConfig
from qsjax.vae.blending import Cut, TilePlan, run_in_tiles

NAME = "three levels, 4x4x4"
CONFIG = CONFIGS[NAME]
TILINGS = [
    Tiling(frames=16, frame_stride=12, pixels=16, pixel_stride=12),
    Tiling(frames=16, frame_stride=4, pixels=16, pixel_stride=4),  # overlaps of several tiles
    Tiling(frames=8, frame_stride=8, pixels=8, pixel_stride=8),  # no overlap
    Tiling(frames=12, frame_stride=8, pixels=None, pixel_stride=None),
    Tiling(frames=None, frame_stride=None, pixels=12, pixel_stride=8),
]
# With frames (1, .., 9) the last tile of a stride of 3 has one frame after 4 and 7, which is dropped.
SHAPES = [*product((1, 4, 5, 7), (3,), (5, 9)), (16, 4, 1), (6, 4, 4), (9, 2, 5), (3, 7, 6)]


def mark(y: np.ndarray) -> np.ndarray:
    """Make a tile's output depend on the tile: its mean, its length and the position inside it."""
    steps = np.indices(y.shape[2:]).astype(np.float32)
    return y * np.cos(steps.sum(axis=0)) + y.mean() + y.shape[2]


def fake_decoder(z: np.ndarray) -> np.ndarray:
    y = z[:, :3].repeat(4, axis=3).repeat(4, axis=4)
    return mark(np.concatenate([y[:, :, :1], y[:, :, 1:].repeat(4, axis=2)], axis=2))


def fake_encoder(x: np.ndarray) -> np.ndarray:
    y = x[:, :, ::4, ::4, ::4].sum(axis=1, keepdims=True)
    return mark(y * np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1, 1, 1))


class Fake(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return torch.from_numpy(self.network(x.numpy()))


@pytest.fixture
def fakes(monkeypatch):
    theirs, ours = pair(NAME)
    for name, stand_in in (
        ("decoder", Fake(fake_decoder)),
        ("encoder", Fake(fake_encoder)),
        ("post_quant_conv", torch.nn.Identity()),
        ("quant_conv", torch.nn.Identity()),
    ):
        monkeypatch.setitem(theirs._modules, name, stand_in)
    monkeypatch.setattr("qsjax.vae.model._decode_tile", lambda vae, z: fake_decoder(z))
    monkeypatch.setattr("qsjax.vae.model._encode_tile", lambda vae, x: fake_encoder(x))
    return theirs, ours


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_blends_as_diffusers(fakes, tiling):
    theirs, ours = fakes
    use(theirs, tiling)
    for shape in SHAPES:
        z, x = latent(CONFIG, *shape, batch=2), video(CONFIG, *shape)
        np.testing.assert_allclose(ours.decode(z, tiling), decoded(theirs, z), rtol=0, atol=1e-5)
        moments, (mean, logvar) = ours.encode(x, tiling), encoded(theirs, x)
        np.testing.assert_allclose(moments.mean, mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(moments.logvar, logvar, rtol=0, atol=1e-5)


class Nearest(nnx.Module):
    """A decoder that only upsamples, so that it compiles at once."""

    def __call__(self, x):
        x = x[..., :3].repeat(4, axis=2).repeat(4, axis=3)
        return jnp.concatenate([x[:, :1], x[:, 1:].repeat(4, axis=1)], axis=1)


@pytest.fixture
def cheap():
    _, ours = pair(NAME)
    vae = nnx.clone(ours)
    vae.decoder = Nearest()
    return vae


def test_one_program_for_each_shape_of_tile(cheap):
    tiling = Tiling(frames=8, frame_stride=4, pixels=16, pixel_stride=12)
    z = latent(CONFIG, 6, 4, 7)
    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        video = cheap.decode(z, tiling)
        # 3 or 2 frames; rows 4 or 1; columns 4, 4 or 1.
        assert len(compiled) == 2 * 2 * 2
        again = cheap.decode(z + 1, tiling)
        assert len(compiled) == 2 * 2 * 2
    finally:
        monitoring.clear_event_listeners()
    assert video.shape == again.shape == (1, 3, 21, 16, 28)


@given(size=st.integers(2, 12), data=st.data())
def test_even_tiles_have_one_length_and_overlap_enough(size, data):
    stride = data.draw(st.integers(1, size))
    length = data.draw(st.integers(size + 1, 8 * size))
    cut = Cut(size, stride, out_stride=stride, even=True)
    spans, left = cut.spans(length), replace(cut, even=False).spans(length)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    (longest,) = {span.stop - span.start for span in spans}
    assert longest <= size
    assert len(spans) <= len(left)
    assert all(a.stop - b.start >= size - stride for a, b in pairwise(spans))


def test_even_tiles_are_blended_over_their_own_overlaps():
    """Three tiles of four cells, each filled with its number; they overlap by two cells and by one."""
    numbers = count()
    plan = TilePlan(None, Cut(4, 3, out_stride=3, even=True))
    x = np.zeros((1, 1, 1, 4, 9), np.float32)
    with Progress(3, "decode", unit="tile", enabled=False) as bar:
        (y,) = run_in_tiles(lambda tile: np.full_like(tile, next(numbers)), x, plan, bar)
    expected = np.array([0, 0, 0, 0.5, 1, 1, 2, 2, 2], np.float32)
    np.testing.assert_array_equal(y, np.broadcast_to(expected, x.shape))


@pytest.mark.parametrize("shape", [(6, 4, 7), (9, 10, 13), (3, 7, 6)], ids=str)
def test_even_tiles_share_one_program_and_do_not_show(cheap, shape):
    tiling = Tiling(frames=8, frame_stride=4, pixels=16, pixel_stride=12, even=True)
    z = latent(CONFIG, *shape)
    assert len(tiling.decode_plan(CONFIG).shapes(z.shape)) == 1
    np.testing.assert_allclose(cheap.decode(z, tiling), cheap.decode(z), rtol=0, atol=1e-6)


def test_tiles_are_even_on_a_tpu():
    """HunyuanVideo at 61 x 480 x 832: 15 tiles of four shapes, or 12 of one, which have less area."""
    shape, config = (1, 16, 16, 60, 104), VAEConfig()
    plan = Tiling().decode_plan(config)
    assert (plan.count(shape), len(plan.shapes(shape))) == (15, 4)
    with targets.assumed(targets.TARGETS["v5e"]):
        plan = Tiling().decode_plan(config)
        assert not Tiling(even=False).decode_plan(config).space.even
    assert (plan.count(shape), plan.shapes(shape)) == (12, [(1, 16, 16, 26, 32)])


def test_progress_counts_tiles(cheap, caplog):
    caplog.set_level(logging.INFO, "qsjax.progress")
    tiling = Tiling(frames=8, frame_stride=4, pixels=16, pixel_stride=12)
    cheap.decode(latent(CONFIG, 6, 4, 7), tiling, progress=True)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert all(line.startswith("decode: ") and "tile/s" in line for line in lines)
    assert lines[-1].startswith("decode: 100 %")


def test_pieces_come_as_soon_as_they_are_final(cheap):
    tiling = Tiling(frames=8, frame_stride=4, pixels=16, pixel_stride=12)
    z = latent(CONFIG, 6, 4, 7)
    pieces = list(cheap.decode_pieces(z, tiling))
    assert [piece.shape[2] for piece in pieces] == [5, 4, 4, 4, 4]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=2), cheap.decode(z, tiling))


def test_a_still_latent_hides_the_tiles():
    """Every layer maps what is constant in time to the same, however long: tiles cannot show."""
    _, ours = pair(NAME)
    z = latent(CONFIG, 1, 3, 4).repeat(5, axis=2)
    video = ours.decode(z, Tiling(frames=4, frame_stride=4, pixels=None, pixel_stride=None))
    assert video.shape[2] == 17
    np.testing.assert_allclose(video, np.broadcast_to(video[:, :, :1], video.shape), atol=1e-3)
    assert np.ptp(video[:, :, :1]) > 0.1


def test_tiles_inside_jit_are_refused():
    _, ours = pair(NAME)
    with pytest.raises(InputError, match=r"decode in tiles was asked for inside jax\.jit"):
        jax.jit(lambda z: ours.decode(z, Tiling()))(latent(CONFIG, 2, 2, 2))
