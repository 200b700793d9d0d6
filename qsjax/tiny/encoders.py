"""Frozen text encoders of LLaMA and CLIP shape, with random weights.

Nothing here is trained: the random states of different words are nearly orthogonal, and the DiT learns what they
mean. One thing is built in, which every trained language model has: heads that look at the words just before. Of
"a red circle moves left and a blue square moves up", a bag of words does not say which shape is red.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from qsjax.params import Module, map_parameters
from qsjax.text import Clip, Llama
from qsjax.tiny.configs import CLIP_CONFIG, LLAMA_CONFIG

# How many words back each head of the LLaMA looks.
_LOOK_BACK = (1, 2)
# The value that channel 0 of every state has; queries and keys are made of it.
_CONSTANT = 4.0
# Rotary frequencies that queries and keys use (the fastest), and their weight there: attention is sharp, not hard.
_FREQUENCIES, _SHARPNESS = 3, 2.0


@functools.cache
def llama(seed: int = 0) -> Llama:
    """The frozen LLaMA-shaped encoder: a word's state is its own embedding plus those of up to four words before."""
    gains = {
        "embed.embedding": 1.0,
        "q_proj": 0.3,
        "k_proj": 0.3,
        "o_proj": 0.7,
        "down_proj": 0.5,
    }
    with jax.ensure_compile_time_eval():  # the first call may come from inside a jitted step
        abstract = nnx.eval_shape(lambda: Llama(LLAMA_CONFIG, rngs=nnx.Rngs(0)))
        return _looking_back(_filled(abstract, seed, gains))


@functools.cache
def clip(seed: int = 1) -> Clip:
    """The frozen CLIP-shaped encoder; its attention is loud, so that the pooled vector is a bag of words."""
    gains = {"token_embed.embedding": 1.0, "position_embed.embedding": 0.1, "out_proj": 4.0}
    with jax.ensure_compile_time_eval():
        abstract = nnx.eval_shape(lambda: Clip(CLIP_CONFIG, rngs=nnx.Rngs(0)))
        module = _filled(abstract, seed, gains)
        table = module.token_embed.embedding
        table.set_value(table.get_value().at[CLIP_CONFIG.eos_token_id].multiply(0.1))
        return module


def _looking_back(module: Llama) -> Llama:
    """Give every head its distance: a score that depends on positions alone and peaks `_LOOK_BACK` words ago.

    With a constant query and key, rotary scores are a sum of cosines of the distance; a query turned back by
    d steps moves their peak to distance d. The constant lives in channel 0, which values and MLPs do not read and
    no layer writes.
    """
    config, layers = module.config, module.layers
    half = config.head_dim // 2
    angle = config.rope_theta ** (-np.arange(half) / half)
    weight = np.where(np.arange(half) < _FREQUENCIES, _SHARPNESS, 0.0)

    def turned(back: int) -> np.ndarray:
        return np.concatenate([weight * np.cos(back * angle), -weight * np.sin(back * angle)])

    table = module.embed.embedding
    table.set_value(table.get_value().at[:, 0].set(_CONSTANT))
    for linear, row in (
        (layers.q_proj, np.concatenate([turned(back) for back in _LOOK_BACK])),
        (layers.k_proj, turned(0)),
        (layers.v_proj, 0.0),
        (layers.gate_proj, 0.0),
        (layers.up_proj, 0.0),
    ):
        kernel = linear.kernel
        kernel.set_value(kernel.get_value().at[:, 0, :].set(jnp.asarray(row, jnp.float32)))
    for linear in (layers.o_proj, layers.down_proj):
        linear.kernel.set_value(linear.kernel.get_value().at[:, :, 0].set(0.0))
    return module


def _filled(abstract: Module, seed: int, gains: dict[str, float]) -> Module:
    """Gaussian weights of standard deviation gain / sqrt(inputs) (embeddings: gain); norms are the identity."""
    random = np.random.default_rng(seed)

    def fill(name: str, parameter: jax.ShapeDtypeStruct) -> Array:
        shape = parameter.shape
        if name.endswith(("kernel", "embedding")):
            gain = next((g for part, g in gains.items() if part in name), 1.0)
            spread = gain if name.endswith("embedding") else gain / np.sqrt(shape[-2])
            value = spread * random.standard_normal(shape)
        else:
            value = np.ones(shape) if name.endswith("scale") else np.zeros(shape)
        return jnp.asarray(value, jnp.float32)

    return map_parameters(fill, abstract)
