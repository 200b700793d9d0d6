"""What the tiny DiT is trained for: the flow of the data first, then its own classifier-free guidance.

`v = noise - x0`, `x_t = (1 - sigma) x0 + sigma noise`, timestep 1000 sigma, with noise levels shifted
upwards by 3, since the layout of a clip is decided at high noise (SD3, arXiv:2403.03206, section 3.1).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qsjax.text import EncodedPrompt
from qsjax.tiny import words

SHIFT = 3.0
GUIDANCE_SCALES = (1.0, 8.0)
CAPTION_DROPOUT = 0.1


@runtime_checkable
class Velocity(Protocol):
    """The model as a function; the guidance scale goes to its embedder."""

    def __call__(
        self,
        x: Float[Array, "B C T H W"],
        sigma: Float[Array, " B"],
        prompt: EncodedPrompt,
        guidance: Float[Array, " B"],
    ) -> Float[Array, "B C T H W"]:
        """Velocity of the flow at noise level `sigma`."""


Objective = Callable[[Velocity, Array, words.Tokens, Array], Array]
"""`(model, x0, tokens, key) -> loss`, the mean over a batch."""


def flow(model: Velocity, x0: Array, tokens: words.Tokens, key: Array) -> Array:
    """Rectified flow, with some captions emptied so that the model also knows the flow without one.

    The guidance embedder sees scale 1, which means none; `distillation` teaches it the others.
    """
    drop_key, key = jax.random.split(key)
    dropped = jax.random.uniform(drop_key, (len(x0), 1)) < CAPTION_DROPOUT
    prompt = words.encode_tokens(_with_empty(tokens, dropped))
    x, sigma, target = _noised(x0, key)
    return jnp.square(model(x, sigma, prompt, jnp.ones(len(x0))) - target).mean()


def distillation(teacher: Velocity) -> Objective:
    """One pass of the student for two of a frozen teacher at scale 1: v_0 + g (v_c - v_0), g drawn from 1..8.

    As HunyuanVideo's released weights were made (On Distillation of Guided Diffusion Models,
    arXiv:2210.03142, section 3.1). Some captions stay empty; their target is v_0 whatever g is.
    """

    def loss(model: Velocity, x0: Array, tokens: words.Tokens, key: Array) -> Array:
        drop_key, guidance_key, key = jax.random.split(key, 3)
        dropped = jax.random.uniform(drop_key, (len(x0), 1)) < CAPTION_DROPOUT
        prompt = words.encode_tokens(_with_empty(tokens, dropped))
        empty = words.encode_tokens(_with_empty(tokens, jnp.ones_like(dropped)))
        x, sigma, _ = _noised(x0, key)
        low, high = GUIDANCE_SCALES
        scale = jax.random.uniform(guidance_key, (len(x0),), minval=low, maxval=high)
        one = jnp.ones_like(scale)
        towards, away = (jax.lax.stop_gradient(teacher(x, sigma, p, one)) for p in (prompt, empty))
        wide = scale[:, None, None, None, None]
        target = away + wide * (towards - away)
        return jnp.square(model(x, sigma, prompt, scale) - target).mean()

    return loss


def stratified(key: Array, count: int) -> Float[Array, " B"]:
    """Logit-normal noise levels, one from each of `count` equal slices of probability."""
    offset = jax.random.uniform(key, ())
    quantile = (jnp.arange(count, dtype=jnp.float32) + offset) / count
    quantile = jnp.clip(quantile, 1e-4, 1 - 1e-4)
    return jax.nn.sigmoid(jax.scipy.special.ndtri(quantile))


def shifted(sigma: Float[Array, " B"]) -> Float[Array, " B"]:
    """Move noise levels towards 1 by the factor `SHIFT`, as the sampling schedule does."""
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def _noised(x0: Array, key: Array) -> tuple[Array, Array, Array]:
    """The noisy latents, their noise levels, and the velocity there."""
    sigma_key, noise_key = jax.random.split(key)
    sigma = shifted(stratified(sigma_key, len(x0)))
    noise = jax.random.normal(noise_key, x0.shape)
    level = sigma[:, None, None, None, None]
    return (1 - level) * x0 + level * noise, sigma, noise - x0


def _with_empty(tokens: words.Tokens, chosen: Array) -> words.Tokens:
    """The tokens with those of the chosen rows [B, 1] replaced by the empty caption's."""
    empty = words.tokenize([""], tokens.ids.shape[1])
    return words.Tokens(
        *(jnp.where(chosen, none, row) for none, row in zip(empty, tokens, strict=True))
    )
