"""The float model's whole sampling runs: latents before every step, from which follow its velocities; on disk, a file a caption.

trajectories/0007.npy       float32 latents of caption 7, [steps + 1, C, T, H, W]
trajectories/prompts.npz    encoded captions and the schedule, written when all runs are there
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Int

from qsjax.calibration.moments import sampled_steps
from qsjax.calibration.samples import (
    Samples,
    SamplingPipeline,
    SettingsChanges,
    collect,
    plain,
    stored,
)
from qsjax.disk import write_atomically, writing
from qsjax.errors import CheckpointError, InputError
from qsjax.progress import Progress
from qsjax.sample import initial_noise, schedule
from qsjax.text import EncodedPrompt
from qsjax.untrusted.arrays import map_array, read_arrays

_PROMPTS = "prompts.npz"
_FACTS = {"timestep", "delta", "text", "mask", "pooled"}


class Moments(NamedTuple):
    """Inputs of the DiT at some steps of some runs, and the float model's velocities there; on the host, or on devices.

    Attributes:
        latents: float32.
        timestep: float32, 0 to 1000.
        text: states of the text encoder.
        mask: True for text tokens that are there.
        pooled: of the second text encoder.
        guidance: float32, 1000 times the scale; None for a model without it.
        velocity: float32.
    """

    latents: Float[Array, "B C T H W"]
    timestep: Float[Array, " B"]
    text: Float[Array, "B L E"]
    mask: Bool[Array, "B L"]
    pooled: Float[Array, "B P"]
    guidance: Float[Array, " B"] | None
    velocity: Float[Array, "B C T H W"]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Sampling runs of N captions, one from noise of its own each.

    Attributes:
        latents: of every caption, before every step and after the last; arrays in memory, or memory-mapped files.
        timestep: the model's, of every step.
        delta: next sigma minus this one.
        text: states of the text encoder.
        mask: which text tokens are there.
        pooled: of the second text encoder.
        guidance: 1000 times the scale; None for a model without it.
    """

    latents: Sequence[Float[np.ndarray, "S1 C T H W"]]
    timestep: Float[np.ndarray, " S"]
    delta: Float[np.ndarray, " S"]
    text: Float[np.ndarray, "N L E"]
    mask: Bool[np.ndarray, "N L"]
    pooled: Float[np.ndarray, "N P"]
    guidance: float | None = None

    def __len__(self) -> int:
        """The number of moments: captions times steps."""
        return len(self.latents) * len(self.timestep)

    def moments(self, numbers: Int[np.ndarray, " B"], place: Sharding | None = None) -> Moments:
        """Some moments; number n is step n % S of caption n // S.

        The velocity is (x' - x) / (sigma' - sigma), which an Euler step was made of: exact to a few 1e-5.

        Args:
            numbers: of moments.
            place: among devices; None is the default device.
        """
        caption, step = np.divmod(numbers, len(self.timestep))
        at = list(zip(caption.tolist(), step.tolist(), strict=True))
        pairs = [self.latents[run][first : first + 2] for run, first in at]
        before, after = (np.stack([pair[end] for pair in pairs]) for end in (0, 1))
        delta = self.delta[step].reshape(-1, 1, 1, 1, 1)
        guidance = self._guidance(len(numbers))
        return Moments(
            latents=jax.device_put(before, place),
            timestep=jax.device_put(self.timestep[step], place),
            text=jax.device_put(self.text[caption], place),
            mask=jax.device_put(self.mask[caption], place),
            pooled=jax.device_put(self.pooled[caption], place),
            guidance=None if guidance is None else jax.device_put(guidance, place),
            velocity=jax.device_put((after - before) / delta, place),
        )

    def samples(self, count: int, seed: int) -> Samples:
        """Inputs spread over captions and noise levels, the same that `collect` keeps."""
        wanted = sampled_steps(count, len(self.timestep), seed)
        of = np.arange(count) % len(self.latents)
        at = list(zip(of.tolist(), wanted.tolist(), strict=True))
        return Samples(
            np.stack([self.latents[run][step] for run, step in at]),
            self.timestep[wanted],
            self.text[of],
            self.mask[of],
            self.pooled[of],
            self._guidance(count),
        )

    def _guidance(self, count: int) -> np.ndarray | None:
        return None if self.guidance is None else np.full(count, self.guidance, np.float32)


class Gathered(NamedTuple):
    """What a model is calibrated with.

    Attributes:
        samples: for its blocks.
        trajectories: for tuning end to end; None where there is none.
    """

    samples: Samples
    trajectories: Trajectories | None = None


def gather(
    pipeline: SamplingPipeline,
    captions: Sequence[str],
    *,
    samples: int,
    whole: bool,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
    **settings: Unpack[SettingsChanges],
) -> Gathered:
    """Sample captions with the float model, as far as a calibration needs them.

    Args:
        pipeline: a `qsjax.Pipeline`.
        captions: of them as many as there are samples.
        samples: inputs for the calibration of blocks.
        whole: keep all steps, for tuning; else the samples alone.
        seed: of the noise and of the choice of steps.
        folder: keeps what was sampled: a later call with the same arguments reads it.
        progress: show a bar.
        **settings: of the pipeline's call.

    Raises:
        InputError: no captions or no samples; true guidance with `whole`.
    """
    if whole:
        place = None if folder is None else folder / "trajectories"
        runs = walk(
            pipeline, captions[:samples], seed=seed, folder=place, progress=progress, **settings
        )
        return Gathered(runs.samples(samples, seed), runs)
    return Gathered(
        stored(folder, lambda: collect(pipeline, captions, samples=samples, seed=seed, **settings))
    )


def walk(
    pipeline: SamplingPipeline,
    captions: Sequence[str],
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = False,
    **settings: Unpack[SettingsChanges],
) -> Trajectories:
    """Sample captions with the float model and keep all of its steps.

    Args:
        pipeline: a `qsjax.Pipeline`.
        captions: each is sampled once, caption n from the noise of `seed + n`.
        seed: of the noise.
        folder: for a file of each run, which a later call with the same arguments reads; None keeps them in memory.
        progress: show a bar.
        **settings: of the pipeline's call, for another size or number of steps.

    Raises:
        InputError: no captions, or true guidance, whose steps are not made of one velocity; the folder cannot be written.
        CheckpointError: a file there is damaged.
    """
    chosen = pipeline.resolve(**settings)
    plan = chosen.plan()
    if not captions:
        raise InputError("there is no caption to sample; give at least one")
    if plan.uses_negative:
        raise InputError(
            f"true_cfg={plan.true_cfg}: tuning compares one velocity a step, and true guidance has two; pass `true_cfg=1`,"
            " or a method without tuning"
        )
    count, path = len(captions), None
    if folder is not None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / _PROMPTS
        if path.exists():
            return _read(folder, count)
    prompt = jax.tree.map(np.asarray, pipeline.encode(list(captions)))
    numbers = schedule(plan)
    facts: dict[str, Any] = {
        "timestep": np.asarray(numbers.timestep),
        "delta": np.asarray(numbers.delta),
        "text": plain(prompt.text),
        "mask": prompt.mask,
        "pooled": plain(prompt.pooled),
    }
    if pipeline.dit_config.guidance_embeds:
        facts["guidance"] = np.asarray(1000 * plan.guidance, np.float32)
    runs = []
    with Progress(count * plan.steps, "sample captions", unit="step", enabled=progress) as bar:
        for number in range(count):
            file = None if folder is None else folder / f"{number:04}.npy"
            if file is not None and file.exists():
                bar.advance(plan.steps)
                continue
            encoded = EncodedPrompt(*(jnp.asarray(part[number : number + 1]) for part in prompt))
            noise = initial_noise(seed + number, pipeline.latent_shape(chosen))
            run = [np.asarray(noise[0])]
            for result in pipeline.denoise(encoded, settings=chosen, latents=noise):
                run.append(np.asarray(result.latents[0]))
                bar.advance()
            if file is None:
                runs.append(np.stack(run))
            else:
                write_atomically(file, _file_of(np.save, np.stack(run)))
    if folder is None or path is None:
        guidance = facts.pop("guidance", None)
        return Trajectories(runs, **facts, guidance=None if guidance is None else float(guidance))
    write_atomically(path, _file_of(np.savez, **facts))
    return _read(folder, count)


def _read(folder: Path, count: int) -> Trajectories:
    runs = [map_array(folder / f"{number:04}.npy") for number in range(count)]
    facts: dict[str, Any] = read_arrays(folder / _PROMPTS)
    if not _FACTS <= set(facts) <= _FACTS | {"guidance"}:
        raise CheckpointError(
            f"{folder / _PROMPTS}: holds no prompts; delete its folder and do the same again"
        )
    guidance = facts.pop("guidance", None)
    return Trajectories(runs, **facts, guidance=None if guidance is None else float(guidance))


def _file_of(save: Any, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()
