"""One step of flow-match Euler sampling as a pure function, and the inputs that all steps share."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.dit import DiT, DiTConfig, Modulation
from qsjax.dit.blocks import Attention
from qsjax.errors import InputError
from qsjax.parallel import by_heads, by_tokens
from qsjax.residual import Gains
from qsjax.sample.adaptive import Limits, limits
from qsjax.sample.gains import gains
from qsjax.sample.schedule import sigmas, timesteps
from qsjax.sample.skip import may_skip
from qsjax.sample.state import Blocks, Cache, Memory
from qsjax.settings import REFRESH, SamplingPlan
from qsjax.text import EncodedPrompt
from qsjax.untrusted import shown

SEEDS = 2**64
"""Number of different seeds."""


class Conditions(NamedTuple):
    """What the steps need of the prompts, computed once.

    Attributes:
        text: the prompt.
        modulation: modulation vectors of all steps, with steps as the leading axis.
        negative: the negative prompt; None without true guidance.
        negative_modulation: modulation vectors of the negative prompt.
    """

    text: EncodedPrompt
    modulation: Modulation
    negative: EncodedPrompt | None
    negative_modulation: Modulation | None


class Step(NamedTuple):
    """The numbers of one step; with a leading axis, those of all steps.

    Attributes:
        index: index of the step, from 0.
        timestep: the model's timestep, 1000 sigma.
        delta: next sigma minus this one.
        gains: extrapolation of the residual cache; None with dense attention.
        allowed: whether the step may be left out; None without step skipping.
        limits: what decides an adaptive step; None without them.
    """

    index: Array
    timestep: Array
    delta: Array
    gains: Gains | None = None
    allowed: Array | None = None
    limits: Limits | None = None


def initial_noise(seed: int, shape: tuple[int, ...]) -> Float[Array, "B C T H W"]:
    """Standard normal latents, float32, equal bits for equal seeds; sample b uses `seed + b`.

    Args:
        seed: 0 to 2^64 - 1; all 64 bits are used.
        shape: [B, C, T, H, W].

    Raises:
        InputError: the seed of the first or of the last sample is out of range.
    """
    check_seed(seed, shape[0])
    normal = _normal(shape[1:])
    samples = [normal(_key_words(seed + sample)) for sample in range(shape[0])]
    return samples[0] if len(samples) == 1 else jnp.concatenate(samples)


def check_seed(seed: int, samples: int = 1) -> None:
    """Check that samples of this seed and those after it have seeds, before the work that needs them.

    Raises:
        InputError: the seed of the first or of the last sample is out of range.
    """
    if not 0 <= seed <= SEEDS - samples:
        many = f" for {samples} samples" if samples > 1 else ""
        raise InputError(f"seed {shown(seed)}: must be from 0 to {SEEDS - samples}{many}")


@lru_cache(maxsize=16)
def _normal(shape: tuple[int, ...]) -> Callable[[np.ndarray], Array]:
    """`jax.random.normal` of one sample, from the words of its key: a program for a shape.

    A CPU's compiler takes two seconds to optimize it, and a fifth of one not to.
    """
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

    def initial_noise(words: Array) -> Array:
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        return jax.random.normal(key, shape, jnp.float32)[None]

    return jax.jit(initial_noise, compiler_options=options)


def _key_words(seed: int) -> np.ndarray:
    """All 64 bits of a seed; `jax.random.key` keeps only 32 of them unless JAX has 64-bit integers enabled."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def prepare(
    plan: SamplingPlan, dit: DiT, text: EncodedPrompt, negative: EncodedPrompt | None = None
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


def schedule(plan: SamplingPlan) -> Step:
    """The numbers of all steps, with steps as the leading axis; NumPy arrays, of which a step is taken without a program."""
    sigma = sigmas(plan.steps, plan.shift)
    make: Any = Step  # NumPy's arrays stand for JAX's
    return make(
        index=np.arange(plan.steps, dtype=np.int32),
        timestep=timesteps(sigma),
        delta=np.diff(sigma),
        gains=None if plan.sparse is None else gains(plan.sparse, sigma),
        limits=limits(plan.sparse, sigma) if plan.sparse and plan.sparse.drift else None,
        allowed=None if plan.skip is None else may_skip(plan.kinds, (REFRESH,)),
    )


def euler_step(
    plan: SamplingPlan,
    dit: DiT,
    latents: Float[Array, "B C T H W"],
    step: Step,
    conditions: Conditions,
    memories: Cache,
    *,
    blocks: Blocks,
    attention: Attention | None = None,
    axis: str | None = None,
) -> tuple[Float[Array, "B C T H W"], Cache]:
    """One Euler step, `x + (sigma' - sigma) v`, in float32 whatever the model's dtype is.

    Args:
        plan: the sampling plan.
        dit: the transformer.
        latents: latents before the step, float32.
        step: the numbers of the step.
        conditions: the result of `prepare`.
        memories: the caches of the prompt and of the negative prompt.
        blocks: function that runs all blocks of the transformer.
        attention: attention for the blocks' slot; None is dense.
        axis: mesh axis of devices that share the video's tokens, inside `jax.shard_map`; see `DiT.forward`.
    """
    times = jnp.full(latents.shape[0], step.timestep)

    def velocity(prompt: EncodedPrompt, table: Modulation, memory: Memory) -> tuple[Array, Memory]:
        row = jax.tree.map(lambda leaf: leaf[step.index], table)
        attend = attention
        if axis is not None:
            attend = among_devices(dit, attention, axis, prompt.text.shape[1])
        img, txt, context = dit.embed(
            latents, times, prompt.text, prompt.mask, attention=attend, axis=axis
        )
        img, memory = blocks(img, txt, context, row, memory)
        return dit.velocity(img, row, latents, axis=axis), memory

    cond_memory, uncond_memory = memories
    cond, cond_memory = velocity(conditions.text, conditions.modulation, cond_memory)
    negative, table = conditions.negative, conditions.negative_modulation
    if negative is not None and table is not None:
        uncond, uncond_memory = velocity(negative, table, uncond_memory)
        cond = uncond + jnp.float32(plan.true_cfg) * (cond - uncond)
    return latents + step.delta * cond, (cond_memory, uncond_memory)


def among_devices(dit: DiT, attention: Attention | None, axis: str, text: int) -> Attention:
    """Attention on devices that share the tokens: by heads if their number divides the heads, else by tokens, then dense only."""
    if dit.config.num_heads % jax.lax.axis_size(axis) == 0:
        return by_heads(attention or dit.dense_attention, axis, text)
    assert attention is None  # `sharded_cache` refuses sparse attention here
    return by_tokens(dit.dense_attention, axis, text)


def _guidance(
    plan: SamplingPlan, config: DiTConfig, prompt: EncodedPrompt
) -> Float[Array, " B"] | None:
    if not config.guidance_embeds:
        return None
    return jnp.full(prompt.pooled.shape[0], 1000 * plan.guidance, jnp.float32)
