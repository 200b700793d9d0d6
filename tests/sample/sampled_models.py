"""A random transformer, prompts, and runs step by step, whose programs all tests of the sampler share."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qsjax.dit import DiT, DiTConfig
from qsjax.sample import denoise, denoise_step, empty_cache, initial_noise, prepare
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


SHAPE = (2, 4, 3, 8, 8)
"""Of latents: 3 x 4 x 4 tokens of video."""


@cache
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


def walk(dit, plan, shape=SHAPE, numbers=None):
    """Steps from noise to the video, one at a time: latents and cache after each of them.

    Runs of as many steps share their programs, whose arguments have rows for all of a run's steps.
    """
    negative = prompt(2, 7) if plan.uses_negative else None
    conditions = _prepare(plan.dense, dit, prompt(1), negative)
    cached = empty_cache(plan, dit, shape, conditions) if plan.remembers else None
    programs = {kind: step_program(plan, kind) for kind in set(plan.kinds)}
    start = initial_noise(7, shape)
    for result in denoise(plan, programs, dit, start, cached, conditions, numbers=numbers):
        yield result.latents, result.cache


def sampled(dit, plan):
    """Latents after the last step."""
    *_, (latents, _) = walk(dit, plan)
    return latents


_prepare = jax.jit(prepare, static_argnums=0)


def step_program(plan, kind):
    """A jitted step. Its number, its levels of noise, its clock, what makes it a refresh and which layers are dense are arguments,
    and so left out of the key.
    """
    if (sparse := plan.sparse) is not None:
        sparse = replace(
            sparse,
            residual=replace(sparse.residual, clock="steps"),
            interval=0,
            refresh_at=(),
            drift=float(sparse.drift > 0),
            least_interval=1,
            dense_steps=1,
            dense_layers=(),
        )
    return _step_program(replace(plan, steps=1, shift=1.0, sparse=sparse), kind)


@cache
def _step_program(plan, kind):
    return jax.jit(partial(denoise_step, plan, kind))
