"""VAE configuration: presets, diffusers' config.json both ways, the parameter tree, refusals."""

import json
from dataclasses import replace

import diffusers
import jax
import numpy as np
import pytest
import torch
from flax import nnx
from vae_pairs import CONFIGS

from qsjax.config import from_mapping, to_mapping
from qsjax.errors import InputError
from qsjax.params import parameters
from qsjax.vae import VAE, Tiling, VAEConfig

SMALL = CONFIGS["three levels, 4x4x4"]


def test_defaults_are_the_released_model():
    vae = nnx.eval_shape(lambda: VAE(VAEConfig(), rngs=nnx.Rngs(0)))
    leaves = parameters(vae)
    assert len(leaves) == 248
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves.values()) == 246_478_803
    assert {
        "encoder.conv_in.kernel",
        "encoder.down_blocks.2.downsampler.kernel",
        "encoder.mid_block.attention.group_norm.scale",
        "decoder.mid_block.attention.to_out.bias",
        "decoder.up_blocks.3.resnets.0.conv_shortcut.kernel",
        "decoder.conv_norm_out.bias",
        "quant_conv.kernel",
    } <= set(leaves)


def test_config_json_both_ways(tmp_path):
    config = replace(SMALL, scaling_factor=0.75, mid_block_add_attention=False)
    theirs = diffusers.AutoencoderKLHunyuanVideo.from_config(config.to_diffusers())
    theirs.save_config(tmp_path)
    read = json.loads((tmp_path / "config.json").read_text())
    assert VAEConfig.from_diffusers(read) == config
    assert from_mapping(VAEConfig, to_mapping(config), source="test") == config


def test_config_json_of_the_released_model():
    with torch.device("meta"):  # its weights are not needed
        theirs = diffusers.AutoencoderKLHunyuanVideo.from_config(VAEConfig().to_diffusers())
    assert VAEConfig.from_diffusers(dict(theirs.config)) == VAEConfig()


def test_config_json_of_tencent():
    read = {
        "_class_name": "AutoencoderKLCausal3D",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlockCausal3D"] * 4,
        "latent_channels": 16,
        "layers_per_block": 2,
        "sample_size": 256,
        "sample_tsize": 64,
        "scaling_factor": 0.476986,
        "time_compression_ratio": 4,
        "up_block_types": ["UpDecoderBlockCausal3D"] * 4,
    }
    assert VAEConfig.from_diffusers(read) == VAEConfig()
    with pytest.raises(InputError, match="mid_block_causal_attn"):
        VAEConfig.from_diffusers(read | {"mid_block_causal_attn": False})


def test_without_mid_attention():
    vae = nnx.eval_shape(
        lambda: VAE(replace(SMALL, mid_block_add_attention=False), rngs=nnx.Rngs(0))
    )
    assert not any("attention" in map(str, path) for path, _ in nnx.to_flat_state(nnx.state(vae)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'; only 'silu'"),
        ({"temporal_compression_ratio": 8}, "temporal_compression_ratio=8; only 4"),
        ({"spatial_compression_ratio": 6}, r"spatial_compression_ratio=6; 3 levels allow \[1, 2, 4, 8\]"),
        ({"block_out_channels": [4, 8]}, "at least 3 levels"),
        ({"norm_num_groups": 3}, r"widths \[4, 4, 8\].*norm_num_groups=3 does not divide"),
        ({"down_block_types": ["DownBlock3D"] * 3}, "down_block_types"),
        ({"up_block_types": ["HunyuanVideoUpBlock3D"] * 4}, "up_block_types.*expected 3 times"),
        ({"latent_chanels": 4}, "unknown key 'latent_chanels'; did you mean 'latent_channels'"),
        ({"layers_per_block": 0}, "layers_per_block is 0; give a number from 1 to 64"),
        ({"_class_name": "AutoencoderKL"}, "'AutoencoderKL'; supported are AutoencoderKLHunyuanVideo, "),
        ({"latent_channels": "16"}, "expected int"),
    ],
)  # fmt: skip
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        VAEConfig.from_diffusers(SMALL.to_diffusers() | change)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"frame_stride": 80}, "frame_stride=80; it must be between 1 and frames=64"),
        ({"pixels": None}, "pixels=None but pixel_stride=192"),
        ({"frame_stride": 0}, "frame_stride is 0; give a number from 1 to"),
    ],
)
def test_impossible_tiles_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        Tiling(**sizes)


def test_tiles_end_on_latent_cells():
    with pytest.raises(
        InputError, match=r"frame_stride=14.*4 does not divide.*nearest valid value is 16"
    ):
        Tiling(frame_stride=14).check(VAEConfig())
    with pytest.raises(
        InputError, match=r"pixel_stride=187.*8 does not divide.*nearest valid value is 184"
    ):
        Tiling(pixel_stride=187).decode_plan(VAEConfig())
    assert Tiling.diffusers() == Tiling(frames=16, frame_stride=12, pixels=256, pixel_stride=192)
    whole = Tiling(frames=None, frame_stride=None, pixels=None, pixel_stride=None)
    assert from_mapping(Tiling, to_mapping(whole), source="test") == whole


def test_number_of_tiles_of_the_released_model():
    latent = (1, 16, 33, 90, 160)  # 129 frames of 720x1280
    assert Tiling().decode_plan(VAEConfig()).count(latent) == 84
    assert Tiling.diffusers().decode_plan(VAEConfig()).count(latent) == 308


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 5, 8, 8), "has 4 channels, the VAE encodes 3"),
        ((1, 3, 8, 8, 8), r"8 frames, the VAE encodes 4k\+1; the nearest valid number is 9"),
        ((1, 3, 5, 10, 8), "height 10, the VAE encodes multiples of 4; the nearest valid one is 8"),
        ((1, 3, 5, 8, 3), "width 3.*nearest valid one is 4"),
    ],
)
@pytest.mark.parametrize("tiling", [None, Tiling()])
def test_videos_of_other_sizes_are_refused(shape, message, tiling):
    vae = nnx.eval_shape(lambda: VAE(SMALL, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=message):
        vae.encode(np.zeros(shape, np.float32), tiling)


@pytest.mark.parametrize("tiling", [None, Tiling()])
def test_latents_of_other_channels_are_refused(tiling):
    vae = nnx.eval_shape(lambda: VAE(SMALL, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"\[1, 5, 2, 2, 2\].*give \[batch, 4, frames"):
        vae.decode(jax.numpy.zeros((1, 5, 2, 2, 2)), tiling)
