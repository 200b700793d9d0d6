"""Flow-match Euler sampling as pure functions: one step, or all of them under one `lax.scan`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.dit import DiT, DiTConfig, Modulation
from qsjax.errors import InputError
from qsjax.sample.plan import Plan
from qsjax.sample.schedule import sigmas, timesteps
from qsjax.text import EncodedPrompt


class Conditions(NamedTuple):
    """Everything of a prompt that the steps need, computed once.

    Attributes:
        text: the prompt.
        modulation: modulation rows of all steps, leading axis steps.
        negative: the negative prompt, or None without true guidance.
        negative_modulation: its rows.
    """

    text: EncodedPrompt
    modulation: Modulation
    negative: EncodedPrompt | None
    negative_modulation: Modulation | None


class Step(NamedTuple):
    """The numbers of one step."""

    index: Array
    timestep: Array
    delta: Array


def initial_noise(seed: int, shape: tuple[int, ...]) -> Float[Array, "B C T H W"]:
    """Standard normal latents, float32, equal bits for equal seeds; sample b uses `seed + b`."""
    keys = [jax.random.key(seed + sample, impl="threefry2x32") for sample in range(shape[0])]
    return jnp.stack([jax.random.normal(key, shape[1:], jnp.float32) for key in keys])


def prepare(
    plan: Plan, dit: DiT, text: EncodedPrompt, negative: EncodedPrompt | None = None
) -> Conditions:
    """Compute what does not change between steps.

    Raises:
        InputError: true guidance without a negative prompt.
    """
    times = jnp.asarray(timesteps(sigmas(plan.steps, plan.shift)))

    def rows(prompt: EncodedPrompt) -> Modulation:
        return dit.modulation(times, prompt.pooled, _guidance(plan, dit.config, prompt))

    if not plan.uses_negative:
        return Conditions(text, rows(text), None, None)
    if negative is None:
        raise InputError(
            f"true_cfg={plan.true_cfg} needs a negative prompt; pass one, it may be empty"
        )
    return Conditions(text, rows(text), negative, rows(negative))


def schedule(plan: Plan) -> Step:
    """The numbers of all steps, leading axis steps."""
    sigma = sigmas(plan.steps, plan.shift)
    return Step(
        index=jnp.arange(plan.steps, dtype=jnp.int32),
        timestep=jnp.asarray(timesteps(sigma)),
        delta=jnp.asarray(np.diff(sigma)),
    )


def denoise_step(
    plan: Plan, dit: DiT, latents: Float[Array, "B C T H W"], step: Step, conditions: Conditions
) -> Float[Array, "B C T H W"]:
    """One Euler step, `x + (sigma' - sigma) v`, in float32 whatever the model's dtype is."""

    def velocity(prompt: EncodedPrompt, table: Modulation) -> Array:
        row = jax.tree.map(lambda leaf: leaf[step.index], table)
        return dit(
            latents,
            jnp.full(latents.shape[0], step.timestep),
            prompt.text,
            prompt.mask,
            prompt.pooled,
            modulation=row,
        )

    towards = velocity(conditions.text, conditions.modulation)
    negative, table = conditions.negative, conditions.negative_modulation
    if negative is not None and table is not None:
        away = velocity(negative, table)
        towards = away + jnp.float32(plan.true_cfg) * (towards - away)
    return latents + step.delta * towards


def make_sampler(config: DiTConfig, plan: Plan) -> Callable[..., Float[Array, "B C T H W"]]:
    """A pure function that runs all steps of `plan`; jit it as a whole.

    >>> sampler = jax.jit(make_sampler(dit.config, Plan(steps=50)), donate_argnums=1)
    >>> latents = sampler(dit, noise, text)

    Args:
        config: of the DiT that will be sampled.
        plan: schedule and guidance.

    Returns:
        `sampler(dit, noise, text, negative=None)`: `dit` is the module (a pytree), `noise` float32
        [B, C, T, H, W], `text` and `negative` encoded prompts; returns latents like `noise`.
    """

    def sampler(
        dit: DiT, noise: Array, text: EncodedPrompt, negative: EncodedPrompt | None = None
    ) -> Array:
        if dit.config != config:
            raise InputError("this sampler was made for a DiT of another configuration")
        conditions = prepare(plan, dit, text, negative)

        def body(latents: Array, step: Step) -> tuple[Array, None]:
            return denoise_step(plan, dit, latents, step, conditions), None

        latents, _ = jax.lax.scan(body, noise, schedule(plan))
        return latents

    return sampler


def _guidance(plan: Plan, config: DiTConfig, prompt: EncodedPrompt) -> Float[Array, " B"] | None:
    if not config.guidance_embeds:
        return None
    return jnp.full(prompt.pooled.shape[0], 1000 * plan.guidance, jnp.float32)
