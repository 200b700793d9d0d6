"""What compressed models are measured against: full-precision videos, and the latents of every step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.calibration import SettingsChanges
from qsjax.dit import DiT
from qsjax.errors import InputError
from qsjax.pipeline import Pipeline
from qsjax.progress import Progress
from qsjax.sample import (
    DENSE,
    Conditions,
    SamplingPlan,
    Settings,
    StepResult,
    denoise,
    denoise_step,
    initial_noise,
    prepare,
)
from qsjax.sample.loop import Program
from qsjax.text import EncodedPrompt

BATCH = 8
Prepare = Callable[[DiT, EncodedPrompt, EncodedPrompt | None], Conditions]
"""`prepare` of a plan, compiled: (dit, prompt, negative prompt) -> conditions."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips that are sampled at once.

    Attributes:
        prompt: encoded captions.
        negative: the negative prompt, with true guidance.
        trajectory: float32 latents before every step and after the last, on the host.
        frames: float32 in [0, 1].
    """

    prompt: EncodedPrompt
    negative: EncodedPrompt | None
    trajectory: Float[np.ndarray, "S B C T H W"]
    frames: Float[np.ndarray, "B F Y X 3"]


@dataclass(frozen=True, eq=False)
class Reference:
    """A full-precision run; clip i is caption i from the noise of `seed + i`.

    Attributes:
        captions: one a clip.
        settings: size and sampling.
        seed: of the noise.
        batches: of clips, in order.
    """

    captions: tuple[str, ...]
    settings: Settings
    seed: int
    batches: tuple[Batch, ...]

    def clips(self, count: int) -> Float[np.ndarray, "n F Y X 3"]:
        """The frames of the first `count` clips, or of all there are."""
        needed = -(-count // len(self.batches[0].frames))
        return np.concatenate([batch.frames for batch in self.batches[:needed]])[:count]


def reference_run(
    pipeline: Pipeline,
    captions: Sequence[str],
    *,
    seed: int = 0,
    batch: int = BATCH,
    progress: bool = False,
    **settings: Unpack[SettingsChanges],
) -> Reference:
    """Sample captions with the pipeline's own DiT.

    Memory, on the host: (steps + 1) latents and one video of float32 a clip; of HunyuanVideo at 720 x 1280 x 129 and 50
    steps about 3 GB, of the tiny model 6 MB.

    Args:
        pipeline: the full-precision model.
        captions: one a clip; a last batch that is smaller compiles once more.
        seed: clip i starts from the noise of `seed + i`.
        batch: clips sampled at once.
        progress: show a bar.
        **settings: fields of `Settings`; the checkpoint's where not given.

    Raises:
        InputError: no captions, an empty one, no batch, or a size that the model cannot make.
    """
    if not captions or batch < 1:
        raise InputError(
            f"{len(captions)} captions in batches of {batch}: at least one of each is needed"
        )
    chosen = pipeline.resolve(**settings)
    batches = []
    with Progress(
        chosen.steps * -(-len(captions) // batch), "reference", unit="step", enabled=progress
    ) as bar:
        for first in range(0, len(captions), batch):
            texts = list(captions[first : first + batch])
            prompt, negative = pipeline.encode(texts), None
            if chosen.plan().uses_negative:
                negative = pipeline.text_encoder([chosen.negative_prompt] * len(texts))
            noise = initial_noise(seed + first, pipeline.latent_shape(chosen, len(texts)))
            latents = [noise]
            for result in denoise_densely(chosen.plan(), pipeline.dit, noise, prompt, negative):
                latents.append(result.latents)
                bar.advance()
            trajectory = np.stack([np.asarray(x) for x in latents])
            batches.append(Batch(prompt, negative, trajectory, pipeline.decode(latents[-1])))
    return Reference(tuple(captions), chosen, seed, tuple(batches))


def denoise_densely(
    plan: SamplingPlan,
    dit: DiT,
    latents: Float[Array | np.ndarray, "B C T H W"],
    prompt: EncodedPrompt,
    negative: EncodedPrompt | None,
) -> Iterator[StepResult]:
    """Run all steps of a plan with dense attention, without its sparse attention and step skipping.

    Models of the same structure (of all bits and transforms alike) share a program.
    """
    make_conditions, steps = dense_programs(plan.dense)
    conditions = make_conditions(dit, prompt, negative)
    return denoise(plan.dense, steps, dit, jnp.asarray(latents), None, conditions)


@lru_cache(maxsize=8)
def dense_programs(plan: SamplingPlan) -> tuple[Prepare, dict[str, Program]]:
    """The jitted `prepare` and dense step of a plan; each keeps a program for every structure of model."""
    return jax.jit(partial(prepare, plan)), {DENSE: jax.jit(partial(denoise_step, plan, DENSE))}
