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
GUIDED_SHIFT = 6.0
GUIDANCE_SCALES = (1.0, 8.0)
FULL_WEIGHT = 4.0
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

    The guidance embedder sees scale 1, which means none; `guided_flow` teaches it the others.
    """
    drop_key, key = jax.random.split(key)
    prompt = words.encode_tokens(_some_emptied(tokens, drop_key))
    x, sigma, target = _noised(x0, key, SHIFT)
    return jnp.square(model(x, sigma, prompt, jnp.ones(len(x0))) - target).mean()


def guided_flow(teacher: Velocity) -> Objective:
    """Half of a batch as in `flow`; in the other half one pass learns what takes two: v_0 + g (v_c - v_0).

    The second half is how HunyuanVideo's released weights were made (On Distillation of Guided Diffusion Models,
    arXiv:2210.03142, section 3.1): v_0 and v_c are a frozen teacher's at scale 1, g is drawn from 1..8. Noise is higher
    there, since guidance decides about the layout, and errors at scales above `FULL_WEIGHT` count less, since they grow with
    the scale. The first half keeps the flow that the guidance is of: a student of guidance alone forgets it, and could
    not be the teacher of the next one.

    Args:
        teacher: frozen; its gradients are stopped.
    """

    def loss(model: Velocity, x0: Array, tokens: words.Tokens, key: Array) -> Array:
        half = len(x0) // 2
        drop_key, scale_key, low_key, high_key = jax.random.split(key, 4)
        low = _noised(x0[:half], low_key, SHIFT)
        high = _noised(x0[half:], high_key, GUIDED_SHIFT)
        x, sigma, target = (jnp.concatenate(pair) for pair in zip(low, high, strict=True))
        least, most = GUIDANCE_SCALES
        scale = jax.random.uniform(scale_key, (len(x0) - half,), minval=least, maxval=most)

        prompt = words.encode_tokens(_some_emptied(tokens, drop_key))
        empty = words.encode_tokens(_emptied(tokens))
        taught = (
            EncodedPrompt(*(part[half:] for part in condition)) for condition in (prompt, empty)
        )
        towards, away = (
            jax.lax.stop_gradient(teacher(x[half:], sigma[half:], condition, jnp.ones_like(scale)))
            for condition in taught
        )
        target = target.at[half:].set(away + _wide(scale) * (towards - away))

        scales = jnp.concatenate([jnp.ones(half), scale])
        weight = jnp.square(FULL_WEIGHT / jnp.maximum(scales, FULL_WEIGHT))
        return (_wide(weight) * jnp.square(model(x, sigma, prompt, scales) - target)).mean()

    return loss


def stratified(key: Array, count: int) -> Float[Array, " B"]:
    """Logit-normal noise levels, one from each of `count` equal slices of probability."""
    offset = jax.random.uniform(key, ())
    quantile = (jnp.arange(count, dtype=jnp.float32) + offset) / count
    quantile = jnp.clip(quantile, 1e-4, 1 - 1e-4)
    return jax.nn.sigmoid(jax.scipy.special.ndtri(quantile))


def shifted(sigma: Float[Array, " B"], shift: float) -> Float[Array, " B"]:
    """Move noise levels towards 1 by a factor, as the sampling schedule does."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _noised(x0: Array, key: Array, shift: float) -> tuple[Array, Array, Array]:
    """The noisy latents, their noise levels, and the velocity there."""
    sigma_key, noise_key = jax.random.split(key)
    sigma = shifted(stratified(sigma_key, len(x0)), shift)
    noise = jax.random.normal(noise_key, x0.shape)
    level = _wide(sigma)
    return (1 - level) * x0 + level * noise, sigma, noise - x0


def _wide(factor: Float[Array, " B"]) -> Float[Array, "B 1 1 1 1"]:
    return factor[:, None, None, None, None]


def _emptied(tokens: words.Tokens) -> words.Tokens:
    """As many empty captions."""
    return words.tokenize([""] * len(tokens.ids), tokens.ids.shape[1])


def _some_emptied(tokens: words.Tokens, key: Array) -> words.Tokens:
    """The tokens, with the caption emptied in some rows."""
    chosen = jax.random.uniform(key, (len(tokens.ids), 1)) < CAPTION_DROPOUT
    return words.Tokens(
        *(jnp.where(chosen, none, row) for none, row in zip(_emptied(tokens), tokens, strict=True))
    )
