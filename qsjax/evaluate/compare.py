"""A model against full precision on the same captions and noise: its videos, and its velocities at the reference's latents.

A video says what a viewer would see, but the error of the first step bends all later ones. Teacher forcing takes that
away: at every step both models get the reference's latents, so that each step's own error shows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from qsjax.dit import DiT, DiTConfig
from qsjax.errors import CheckpointError, InputError
from qsjax.evaluate.metrics import frame_psnr, psnr, relative_error, ssim
from qsjax.evaluate.reference import Reference, dense_programs
from qsjax.pipeline import Pipeline
from qsjax.progress import Progress
from qsjax.sample import DENSE, denoise, schedule
from qsjax.sample.loop import step_at
from qsjax.video import to_uint8

Judge = Callable[[np.ndarray, int], np.ndarray]
"""Frames [B, F, Y, X, 3] in [0, 1] and the number of the first clip -> how well each shows its caption."""
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Frames and the reference's, [B, F, Y, X, 3] in [0, 1] -> a distance of each pair of videos."""
_FIGURES = ("psnr", "ssim", "velocity")
_MORE = ("frame_psnr", "caption_score", "lpips")
"""Figures that not every result has."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """One value a clip, in the reference's order.

    Attributes:
        psnr: decibels between sampled videos.
        ssim: between sampled videos.
        velocity: ||v_q(x_t) - v(x_t)|| / ||v(x_t)|| at the reference's latents, by step and clip.
        frame_psnr: decibels, the mean over frames; None of results that were stored without it.
        caption_score: how well videos show their captions, 0 to 1; None where nobody judged.
        lpips: between sampled videos; None where it was not asked for.
        videos: the first clips as 8-bit frames, to look at.
    """

    psnr: Float[np.ndarray, " clips"]
    ssim: Float[np.ndarray, " clips"]
    velocity: Float[np.ndarray, "steps clips"]
    frame_psnr: Float[np.ndarray, " clips"] | None = None
    caption_score: Float[np.ndarray, " clips"] | None = None
    lpips: Float[np.ndarray, " clips"] | None = None
    videos: UInt8[np.ndarray, "shown F Y X 3"] | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for JSON, six digits; without the videos, and without figures that it does not have."""
        figures = {name: getattr(self, name) for name in (*_FIGURES, *_MORE)}
        return {name: _rounded(values) for name, values in figures.items() if values is not None}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "comparison") -> "Comparison":
        """Inverse of `to_mapping`.

        Raises:
            CheckpointError: not what `to_mapping` gives.
        """
        try:
            names = (*_FIGURES, *(name for name in _MORE if name in values))
            figures = {name: np.asarray(values[name], np.float64) for name in names}
            clips = figures["psnr"].shape
            by_clip = (
                x.shape[1:] if name == "velocity" else x.shape for name, x in figures.items()
            )
            if any(shape != clips for shape in by_clip):
                raise ValueError("unlike numbers of clips")
            comparison = cls(**figures)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source}: is not the result of a comparison ({error}); remove it and run again"
            ) from error
        return comparison


def compare(
    pipeline: Pipeline,
    reference: Reference,
    dit: DiT,
    *,
    judge: Judge | None = None,
    lpips: Measure | None = None,
    show: int = 0,
    label: str = "compare",
    progress: bool = False,
) -> Comparison:
    """Sample the reference's captions from the same noise with another DiT, and its velocities at the reference's latents.

    Two evaluations of the model a step. The velocity error is taken from the latents after the step: they are x + delta v, so
    that ||x_q' - x'|| / ||x' - x|| is the same number, with true guidance too; it is 0 for the same weights, and otherwise
    exact to about 1e-5 (float32 latents against a step's length).

    Args:
        pipeline: whose VAE decodes; its DiT is not used.
        reference: of `reference_run`.
        dit: called as the reference's DiT is.
        judge: says how well clips show their captions.
        lpips: `qsjax.evaluate.perceptual.lpips`, or another distance of videos.
        show: clips kept to look at.
        label: of the bar.
        progress: show a bar.

    Raises:
        InputError: the DiT takes other latents or another text, or its output is not finite.
    """
    _check(dit, pipeline.dit_config)
    plan, batches = reference.settings.plan().dense, reference.batches
    numbers = schedule(plan)
    by_batch: dict[str, list[np.ndarray]] = {name: [] for name in (*_FIGURES, *_MORE)}
    videos: list[np.ndarray] = []
    done = 0
    with Progress(plan.steps * len(batches), label, unit="step", enabled=progress) as bar:
        for batch in batches:
            make_conditions, steps = dense_programs(plan)
            conditions = make_conditions(dit, batch.prompt, batch.negative)
            x, errors = jnp.asarray(batch.trajectory[0]), []
            for result in denoise(plan, steps, dit, x, None, conditions):
                before, after = batch.trajectory[result.index : result.index + 2]
                now = step_at(numbers, result.index)
                forced, _ = steps[DENSE](dit, jnp.asarray(before), None, now, conditions)
                errors.append(relative_error(np.asarray(forced), after, before))
                x = result.latents
                bar.advance()
            frames = pipeline.decode(x)
            by_batch["velocity"].append(np.stack(errors))
            by_batch["psnr"].append(psnr(frames, batch.frames))
            by_batch["ssim"].append(ssim(frames, batch.frames))
            by_batch["frame_psnr"].append(frame_psnr(frames, batch.frames))
            if judge is not None:
                by_batch["caption_score"].append(judge(frames, done))
            if lpips is not None:
                by_batch["lpips"].append(lpips(frames, batch.frames))
            done += len(frames)
            missing = show - sum(map(len, videos))
            videos.append(to_uint8(frames[: max(missing, 0)]))
    figures = {name: np.concatenate(parts, axis=-1) for name, parts in by_batch.items() if parts}
    return Comparison(**figures, videos=np.concatenate(videos) if show else None)


def _check(dit: DiT, config: DiTConfig) -> None:
    for name in ("in_channels", "out_channels", "text_dim", "pooled_dim"):
        ours, reference = getattr(dit.config, name), getattr(config, name)
        if ours != reference:
            raise InputError(
                f"{name} is {ours} in the model and {reference} in the reference: they cannot be compared"
            )


def _rounded(values: np.ndarray) -> list[float] | list[list[float]]:
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(values).tolist()
