"""Calibration samples: moments of the model's own sampling, spread over captions and noise levels."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qsjax.calibration.moments import sampled_steps
from qsjax.disk import write_atomically
from qsjax.dit import DiTConfig
from qsjax.errors import CheckpointError, InputError
from qsjax.sample import Settings, StepResult, initial_noise, schedule
from qsjax.settings.calibration import SAMPLES
from qsjax.text import EncodedPrompt
from qsjax.untrusted.arrays import read_arrays

_FILE = "samples.npz"


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
    """Inputs of the DiT, S of them, on the host.

    Attributes:
        latents: float32.
        timestep: float32, 0 to 1000.
        text: states of the text encoder.
        mask: True for text tokens that are there.
        pooled: of the second text encoder.
        guidance: float32, 1000 times the scale; None for a model without it.
    """

    latents: Float[np.ndarray, "S C T H W"]
    timestep: Float[np.ndarray, " S"]
    text: Float[np.ndarray, "S L E"]
    mask: Bool[np.ndarray, "S L"]
    pooled: Float[np.ndarray, "S P"]
    guidance: Float[np.ndarray, " S"] | None = None


@runtime_checkable
class SamplingPipeline(Protocol):
    """What `collect` needs of a `qsjax.Pipeline`.

    Attributes:
        dit_config: sizes of the transformer.
        resolve: `SettingsChanges` as keywords -> the settings of a run.
    """

    dit_config: DiTConfig
    resolve: Callable[..., Settings]

    def encode(self, prompt: list[str]) -> EncodedPrompt:
        """Texts to the states of the text encoders."""
        ...

    def latent_shape(self, settings: Settings) -> tuple[int, ...]:
        """Shape [1, C, T, H, W] of the latents."""
        ...

    def denoise(
        self, prompt: EncodedPrompt, *, settings: Settings, latents: Float[Array, "1 C T H W"]
    ) -> Iterator[StepResult]:
        """The steps of a run, one by one."""
        ...


def collect(
    pipeline: SamplingPipeline,
    captions: Sequence[str],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    **settings: Unpack[SettingsChanges],
) -> Samples:
    """Sample the captions with the float model and keep its inputs at some of the steps.

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
    wanted, of = sampled_steps(samples, plan.steps, seed), np.arange(samples) % len(used)
    latents: dict[int, np.ndarray] = {}
    for number in range(len(used)):
        due: dict[int, list[int]] = {}
        for index in np.flatnonzero(of == number).tolist():
            due.setdefault(int(wanted[index]), []).append(index)
        encoded = EncodedPrompt(*(jnp.asarray(part[number : number + 1]) for part in prompt))
        noise = initial_noise(seed + number, pipeline.latent_shape(chosen))
        last = max(due)
        for index in due.get(0, ()):
            latents[index] = np.asarray(noise[0])
        if last == 0:
            continue
        for result in pipeline.denoise(encoded, settings=chosen, latents=noise):
            done = result.index + 1
            for index in due.get(done, ()):
                latents[index] = np.asarray(result.latents[0])
            if done == last:
                break
    timestep = np.asarray(schedule(plan).timestep)[wanted]
    guidance = None
    if pipeline.dit_config.guidance_embeds:
        guidance = np.full(samples, 1000 * plan.guidance, np.float32)
    text, mask, pooled = (part[of] for part in prompt)
    return Samples(
        np.stack([latents[index] for index in range(samples)]),
        timestep,
        text,
        mask,
        pooled,
        guidance,
    )


def stored(folder: Path | None, make: Callable[[], Samples]) -> Samples:
    """The samples that a folder holds, made and stored where it holds none; without a folder they are made.

    Raises:
        CheckpointError: the file there is damaged.
        DiskError: they cannot be stored.
    """
    if folder is None:
        return make()
    path = folder / _FILE
    if not path.exists():
        present = {name: value for name, value in make()._asdict().items() if value is not None}
        buffer, arrays = io.BytesIO(), {name: plain(np.asarray(x)) for name, x in present.items()}
        saved: Any = arrays
        np.savez(buffer, **saved)
        write_atomically(path, buffer.getvalue())
    arrays = read_arrays(path)
    if not set(Samples._fields) - {"guidance"} <= set(arrays) <= set(Samples._fields):
        raise CheckpointError(f"{path}: holds no samples; delete its folder and do the same again")
    return Samples(**arrays)


def plain(value: np.ndarray) -> np.ndarray:
    """The same, floating values as float32: `.npz` knows no bfloat16."""
    return value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
