"""A random transformer and prompts for tests of the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qsjax.dit import DiT, DiTConfig
from qsjax.sample import step_of_kind
from qsjax.text import EncodedPrompt

CONFIG = DiTConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=32,
    num_heads=2,
    num_double_blocks=1,
    num_single_blocks=1,
    num_refiner_blocks=1,
    mlp_ratio=2.0,
    patch_size=(1, 2, 2),
    rope_axes_dim=(4, 6, 6),
    rope_theta=256.0,
    text_dim=8,
    pooled_dim=6,
    guidance_embeds=True,
)


def random_dit():
    graph, abstract = nnx.split(nnx.eval_shape(lambda: DiT(CONFIG, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    return nnx.merge(
        graph,
        jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), abstract),
    )


def prompt(seed, length=5):
    rng = np.random.default_rng(seed)
    return EncodedPrompt(
        text=jnp.asarray(rng.standard_normal((2, length, 8)), jnp.float32),
        mask=jnp.arange(length)[None] < jnp.array([[length], [2]]),
        pooled=jnp.asarray(rng.standard_normal((2, 6)), jnp.float32),
    )


def counted(plan, kind, traces):
    """A jitted step; the kind is added to `traces` whenever it is traced."""

    def step(*arguments):
        traces.append(kind)
        return step_of_kind(plan, kind, *arguments)

    return jax.jit(step)
