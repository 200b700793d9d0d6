"""Samples during training: videos of held-out captions, their score and a sheet to look at."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from qsjax.dit import DiT
from qsjax.sample import initial_noise, make_sampler
from qsjax.settings import SamplingPlan
from qsjax.tiny import checker, latents, words
from qsjax.tiny.checker import Score
from qsjax.tiny.dit_training import TEXT_LENGTH
from qsjax.tiny.scenes import Scene, scene
from qsjax.video import write_contact_sheet

Decode = Callable[[np.ndarray], np.ndarray]
SHEET_ROWS = 12


def held_out(seed: int, count: int) -> list[Scene]:
    """The first scenes of a stream that no training sees."""
    return [scene(seed, index) for index in range(count)]


def sample(
    dit: DiT,
    scenes: Sequence[Scene],
    plan: SamplingPlan,
    size: tuple[int, int, int],
    *,
    seed: int,
    batch: int = 8,
) -> list[np.ndarray]:
    """Latents [16, T, h, w] for every scene's caption.

    Args:
        dit: the transformer.
        scenes: only their captions are used; the number is a multiple of `batch`.
        plan: schedule and guidance; the negative prompt is the empty caption.
        size: frames, height, width in pixels.
        seed: sample i starts from the noise of `seed + i`.
        batch: sampled at once.
    """
    sampler = jax.jit(make_sampler(dit.config, plan))
    cells = (latents.CHANNELS, (size[0] - 1) // 4 + 1, size[1] // 4, size[2] // 4)
    empty = words.encode_tokens(words.tokenize([""] * batch, TEXT_LENGTH))
    made: list[np.ndarray] = []
    for start in range(0, len(scenes), batch):
        captions = [scene.caption for scene in scenes[start : start + batch]]
        text = words.encode_tokens(words.tokenize(captions, TEXT_LENGTH))
        noise = initial_noise(seed + start, (batch, *cells))
        made.extend(np.asarray(sampler(dit, noise, text, empty if plan.uses_negative else None)))
    return made


def judge(
    made: Sequence[np.ndarray],
    scenes: Sequence[Scene],
    decode: Decode,
    sheet: Path | None = None,
) -> Score:
    """Decode latents, score them against their scenes, and write a contact sheet of the first dozen.

    Args:
        made: latents [16, T, h, w].
        scenes: what they should show.
        decode: latents -> video [3, F, H, W] in [-1, 1].
        sheet: PNG to write.
    """
    videos = [np.clip(decode(z), -1, 1) for z in made]
    if sheet is not None:
        show(videos, scenes, sheet)
    return checker.score(zip(videos, scenes, strict=True))


def show(videos: Sequence[np.ndarray], scenes: Sequence[Scene], sheet: Path) -> None:
    """Write a contact sheet of the first dozen videos [3, F, H, W] in [-1, 1]."""
    pictures = [
        np.round((np.clip(video, -1, 1).transpose(1, 2, 3, 0) + 1) * 127.5).astype(np.uint8)
        for video in videos[:SHEET_ROWS]
    ]
    write_contact_sheet(pictures, [scene.caption for scene in scenes[:SHEET_ROWS]], sheet)


def decibels(videos: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean PSNR over pairs of clips in [-1, 1]."""
    errors = [
        np.mean(np.square(a - np.clip(b, -1, 1))) for a, b in zip(videos, others, strict=True)
    ]
    return float(np.mean(-10 * np.log10(np.array(errors) / 4)))
