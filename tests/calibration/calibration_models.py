"""A small random DiT with live modulation, as a module and as a checkpoint, and what it is calibrated with."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from dit.dit_pairs import SMALL
from flax import nnx

from convert import Sources, convert
from convert.bundled import tiny_model_directory
from convert.containers import TensorInfo, write_safetensors
from convert.keymaps import expand
from qsjax.calibration import METHODS, Samples, Trajectories
from qsjax.dit import DiT
from qsjax.evaluate.reference import denoise_densely
from qsjax.quant import Recipe
from qsjax.settings import Settings
from qsjax.text import EncodedPrompt
from qsjax.vae.config import VAEConfig

# Two blocks of each kind.
CONFIG = replace(SMALL, num_single_blocks=2, mlp_ratio=2.0)
VAE = VAEConfig(
    block_out_channels=(4, 4, 8),
    layers_per_block=1,
    norm_num_groups=2,
    latent_channels=4,
    spatial_compression_ratio=4,
)
# Small rotations: those of 128 x 128 would weigh more than the packed layers.
RECIPE = replace(Recipe.load("w4a8"), rotation_size=8)
# On float inputs, on those of the quantized blocks before, and on float inputs again.
METHOD = replace(METHODS["msad"], epochs=3)
BLOCKS = ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1"]


def random_dit(seed=0):
    """Gaussian weights everywhere: a new block of the DiT is the identity and says nothing."""
    # Of the shapes alone: the initializers of a DiT compile for many seconds.
    graph, state = nnx.split(nnx.eval_shape(lambda: DiT(CONFIG, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(seed)
    flat = []
    for path, variable in nnx.to_flat_state(state):
        value = variable.get_value()
        spread = 1 / np.sqrt(value.shape[-2]) if path[-1] == "kernel" else 0.1
        noise = spread * random.standard_normal(value.shape) + (path[-1] == "scale")
        flat.append((path, variable.replace(jnp.asarray(noise, jnp.float32))))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def random_checkpoint(folder):
    """Such a DiT, a VAE, and the bundled CLIP with its tokenizer, from PyTorch's files as users convert them."""
    random = np.random.default_rng(0)

    def drawn(name, shape):
        spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        noise = spread * random.standard_normal(shape) + ("norm" in name and "weight" in name)
        return noise.astype(ml_dtypes.bfloat16)

    parts = (("dit", "diffusers", "transformer", CONFIG), ("vae", "hunyuan", "vae", VAE))
    for component, layout, place, config in parts:
        (folder / place).mkdir()
        weights = {
            name: drawn(name, shape)
            for row in expand(component, config, layout)
            for name, shape in row.sources.items()
        }
        infos = {name: TensorInfo(one.shape, one.dtype) for name, one in weights.items()}
        write_safetensors(
            folder / place / "diffusion_pytorch_model.safetensors", infos, weights.__getitem__
        )
        (folder / place / "config.json").write_text(json.dumps(config.to_diffusers()))
    bundled = tiny_model_directory()
    sources = Sources(
        transformer=folder / "transformer",
        vae=folder / "vae",
        text_encoder_2=bundled / "text_encoder_2",
        tokenizer_2=bundled / "tokenizer_2",
    )
    convert(sources, folder / "checkpoint", progress=False)
    return folder / "checkpoint"


def random_samples(count=2, length=5, seed=0):
    """24 video tokens each; 1, 2, ... of the text tokens are there."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    valid = 1 + np.arange(count) % length
    return Samples(
        latents=normal(count, CONFIG.in_channels, 4, 6, 4),
        timestep=np.linspace(1000, 50, count, dtype=np.float32),
        text=normal(count, length, CONFIG.text_dim),
        mask=np.arange(length)[None] < valid[:, None],
        pooled=normal(count, CONFIG.pooled_dim),
        guidance=np.full(count, 6000, np.float32),
    )


def random_trajectories(dit, runs=2, steps=3):
    """Sampling runs of a DiT from noise, on the prompts of `random_samples`."""
    given = random_samples(runs)
    sigma = np.linspace(1, 0, steps + 1, dtype=np.float32)
    delta, timestep = np.diff(sigma), 1000 * sigma[:-1]
    run = jax.jit(DiT.__call__)
    latents = [jnp.asarray(given.latents)]
    for step in range(steps):
        x = latents[-1]
        velocity = run(dit, x, jnp.full(runs, timestep[step]), *map(jnp.asarray, given[2:]))
        latents.append(x + delta[step] * velocity)
    return Trajectories(
        list(np.stack([np.asarray(x) for x in latents], axis=1)),
        timestep,
        delta,
        given.text,
        given.mask,
        given.pooled,
        float(given.guidance[0]),
    )


class RandomPipeline:
    """What `gather` needs of a pipeline, around a DiT: captions become random states, the same for the same caption.

    Args:
        dit: that samples.
        steps: of a run.
    """

    def __init__(self, dit, steps=3):
        self.dit, self.dit_config = dit, dit.config
        self._settings = Settings(steps=steps, shift=3.0)
        self.encoded, self.runs = [], 0

    def resolve(self, **changes):
        return replace(self._settings, **{k: v for k, v in changes.items() if v is not None})

    def encode(self, captions):
        self.encoded += captions
        samples = [random_samples(1, seed=sum(map(ord, caption))) for caption in captions]
        parts = ([getattr(one, name) for one in samples] for name in ("text", "mask", "pooled"))
        return EncodedPrompt(*(jnp.asarray(np.concatenate(part)) for part in parts))

    def latent_shape(self, settings, count=1):
        return count, self.dit_config.in_channels, 4, 6, 4

    def denoise(self, prompt, *, settings, latents):
        self.runs += 1
        return denoise_densely(settings.plan(), self.dit, latents, prompt, None)
