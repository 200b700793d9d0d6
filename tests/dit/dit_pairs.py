"""The same random transformer twice: diffusers' module and ours, filled through the key table."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from convert.keymaps import load_module
from qsjax.dit import DiT, DiTConfig

SMALL = DiTConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=48,
    num_heads=3,
    num_double_blocks=2,
    num_single_blocks=3,
    num_refiner_blocks=2,
    mlp_ratio=4.0,
    patch_size=(1, 2, 2),
    rope_axes_dim=(4, 6, 6),
    rope_theta=256.0,
    text_dim=20,
    pooled_dim=12,
    guidance_embeds=True,
)
# Odd on purpose: other ratios, depths, patches and channel counts; one with, one without guidance.
CONFIGS = {
    "small": SMALL,
    "odd": replace(
        SMALL,
        in_channels=5,
        out_channels=3,
        hidden_size=40,
        num_heads=2,
        num_double_blocks=1,
        num_single_blocks=1,
        num_refiner_blocks=1,
        mlp_ratio=2.5,
        patch_size=(2, 2, 2),
        rope_axes_dim=(8, 6, 6),
        rope_theta=100.0,
        guidance_embeds=False,
    ),
    "deep": replace(
        SMALL,
        hidden_size=64,
        num_heads=1,
        num_double_blocks=3,
        num_single_blocks=2,
        rope_axes_dim=(16, 24, 24),
        patch_size=(1, 1, 1),
        text_dim=33,
    ),
}


def diffusers_dit(config, seed=0):
    from diffusers import HunyuanVideoTransformer3DModel

    torch.manual_seed(seed)
    settings = {k: v for k, v in config.to_diffusers().items() if not k.startswith("_")}
    model = HunyuanVideoTransformer3DModel(**settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.ndim == 1:  # norm weights start at 1 and say nothing
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def state_dict(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def our_dit(config, model, dtype=jnp.float32):
    dit = nnx.eval_shape(lambda: DiT(config, dtype=dtype, rngs=nnx.Rngs(0)))
    return load_module(dit, "dit", "diffusers", state_dict(model), config)


def inputs(config, *, batch=2, length=7, frames=4, height=6, width=8, guidance=6000.0, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    valid = np.array([length, 3, 1])[:batch]
    return {
        "latents": normal(batch, config.in_channels, frames, height, width),
        "timestep": np.array([1000.0, 333.25, 12.0], np.float32)[:batch],
        "text": normal(batch, length, config.text_dim),
        "text_mask": np.arange(length)[None] < valid[:, None],
        "pooled": normal(batch, config.pooled_dim),
        "guidance": np.full(batch, guidance, np.float32) if config.guidance_embeds else None,
    }


def run_diffusers(model, given):
    tensors = {k: None if v is None else torch.from_numpy(v) for k, v in given.items()}
    with torch.no_grad():
        return model(
            hidden_states=tensors["latents"],
            timestep=tensors["timestep"],
            encoder_hidden_states=tensors["text"],
            encoder_attention_mask=tensors["text_mask"].long(),
            pooled_projections=tensors["pooled"],
            guidance=tensors["guidance"],
            return_dict=False,
        )[0].numpy()


@jax.jit
def _forward(dit, given, modulation):
    return dit(**given, modulation=modulation)


def run_ours(dit, given, modulation=None):
    arrays = {k: None if v is None else jnp.asarray(v) for k, v in given.items()}
    return _forward(dit, arrays, modulation)
