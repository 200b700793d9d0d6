"""Calibration samples: moments of the model's own sampling, spread over captions and noise levels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from qsjax.errors import InputError
from qsjax.sample import initial_noise, schedule
from qsjax.text import EncodedPrompt


class SettingsChanges(TypedDict, total=False):
    """Settings of a run that are not the checkpoint's; None, or absent, is the checkpoint's."""

    frames: int | None
    height: int | None
    width: int | None
    fps: int | None
    steps: int | None
    shift: float | None
    guidance: float | None
    true_cfg: float | None


class Samples(NamedTuple):
    """Inputs of the DiT, S of them; NumPy arrays.

    Attributes:
        latents: float32 [S, C, T, H, W].
        timestep: float32 [S].
        text: [S, L, E].
        mask: bool [S, L].
        pooled: [S, P].
        guidance: float32 [S], or None for a model without it.
    """

    latents: Any
    timestep: Any
    text: Any
    mask: Any
    pooled: Any
    guidance: Any


def strata(samples: int, steps: int, seed: int) -> np.ndarray:
    """A denoising step for every sample: one from each of `samples` equal stretches of the schedule, in random order."""
    random = np.random.default_rng(seed)
    at = (np.arange(samples) + random.random(samples)) / samples
    return random.permutation(np.minimum((at * steps).astype(int), steps - 1))


def collect(
    pipeline: Any, captions: Sequence[str], *, samples: int = 20, seed: int = 0, **settings: Any
) -> Samples:
    """Sample the captions with the float model and keep what it was given at some of the steps.

    Args:
        pipeline: a `qsjax.Pipeline`.
        captions: each is sampled once; with fewer captions than samples a trajectory gives several.
        samples: S.
        seed: of the noise and of the choice of steps.
        **settings: of the pipeline's call, for another size or number of steps.

    Raises:
        InputError: no captions or no samples.
    """
    if not captions or samples < 1:
        raise InputError(
            f"{len(captions)} captions, {samples} samples: calibration needs at least one of each"
        )
    chosen = pipeline.resolve(**settings)
    plan = chosen.plan()
    used = list(captions)[:samples]
    prompt = jax.tree.map(np.asarray, pipeline.encode(used))
    wanted, of = strata(samples, plan.steps, seed), np.arange(samples) % len(used)
    latents: list[Any] = [None] * samples
    for number in range(len(used)):
        steps = {int(wanted[s]): s for s in np.flatnonzero(of == number)[::-1]}
        same = {int(step): np.flatnonzero((of == number) & (wanted == step)) for step in steps}
        one = EncodedPrompt(*(jnp.asarray(part[number : number + 1]) for part in prompt))
        noise = initial_noise(seed + number, pipeline.latent_shape(chosen))
        last = max(same)
        for index in same.get(0, ()):
            latents[index] = np.asarray(noise[0])
        if last == 0:
            continue
        for result in pipeline.denoise(one, settings=chosen, latents=noise):
            done = result.index + 1
            for index in same.get(done, ()):
                latents[index] = np.asarray(result.latents[0])
            if done == last:
                break
    timestep = np.asarray(schedule(plan).timestep)[wanted]
    guidance = None
    if pipeline.dit_config.guidance_embeds:
        guidance = np.full(samples, 1000 * plan.guidance, np.float32)
    text, mask, pooled = (part[of] for part in prompt)
    return Samples(np.stack(latents), timestep, text, mask, pooled, guidance)
