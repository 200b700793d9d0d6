"""A small random DiT with live modulation, and calibration samples for it."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from dit.dit_pairs import SMALL
from flax import nnx

from qsjax.calibrate import Samples
from qsjax.dit import DiT

CONFIG = replace(SMALL, num_double_blocks=2, num_single_blocks=2)


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


def random_samples(count=3, length=5, seed=0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    valid = 1 + np.arange(count) % length
    return Samples(
        latents=normal(count, CONFIG.in_channels, 4, 6, 8),
        timestep=np.linspace(1000, 50, count, dtype=np.float32),
        text=normal(count, length, CONFIG.text_dim),
        mask=np.arange(length)[None] < valid[:, None],
        pooled=normal(count, CONFIG.pooled_dim),
        guidance=np.full(count, 6000, np.float32),
    )
