"""The whole way from the bundled PyTorch files to frames, against diffusers' HunyuanVideoPipeline."""

import numpy as np
import pytest
import torch
from tolerances import PIPELINE_PSNR

import qsjax
from convert.bundled import tiny_model_directory
from qsjax.sample import initial_noise
from qsjax.vae import Tiling

CAPTION = "a red circle moves left over a dark background"


@pytest.fixture(scope="module")
def theirs():
    from diffusers import HunyuanVideoPipeline

    pipeline = HunyuanVideoPipeline.from_pretrained(tiny_model_directory(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("size", "tiling"),
    [
        ((17, 48, 32), None),
        pytest.param(
            (33, 32, 48),
            Tiling(frames=16, frame_stride=12, pixels=None, pixel_stride=None),
            marks=pytest.mark.whole,
        ),
    ],
)
def test_frames_agree_with_diffusers(theirs, tiny_checkpoint, size, tiling):
    ours = qsjax.Pipeline.from_checkpoint(tiny_checkpoint, dtype="float32", progress=False)
    ours.tiling = tiling
    frames, height, width = size
    settings = ours.resolve(frames=frames, height=height, width=width, steps=4, true_cfg=1.0)
    noise = initial_noise(3, ours.latent_shape(settings))
    frames_ours = ours.decode(ours.sample(ours.encode(CAPTION), settings=settings, latents=noise))
    # Tiles over time are always on in diffusers above four latent frames, and no file says so.
    theirs.vae.use_framewise_decoding = tiling is not None
    theirs.scheduler.register_to_config(shift=settings.shift)
    theirs.scheduler.set_shift(settings.shift)
    template = ours.text_encoder.template
    frames_theirs = theirs(
        prompt=CAPTION,
        prompt_template={"template": template.template, "crop_start": template.crop_start},
        max_sequence_length=template.max_length,
        num_frames=frames,
        height=height,
        width=width,
        num_inference_steps=4,
        guidance_scale=settings.guidance,
        latents=torch.from_numpy(np.asarray(noise).copy()),
        output_type="np",
    ).frames
    assert frames_ours.shape == frames_theirs.shape
    assert frames_ours.std() > 0.01
    error = np.mean((frames_ours - frames_theirs).astype(np.float64) ** 2)
    assert -10 * np.log10(error) >= PIPELINE_PSNR
