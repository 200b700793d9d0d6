"""Samples during training: videos of held-out captions, their score and a sheet to look at."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from qsjax.dit import DiT
from qsjax.sample import initial_noise, make_sampler
from qsjax.settings import SamplingPlan
from qsjax.tiny import checker, sheets, words
from qsjax.tiny.checker import Score
from qsjax.tiny.scenes import Scene
from qsjax.tiny.training import latents
from qsjax.tiny.words import TEXT_LENGTH

Decode = Callable[[np.ndarray], np.ndarray]


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
    samples: list[np.ndarray] = []
    for start in range(0, len(scenes), batch):
        captions = [scene.caption for scene in scenes[start : start + batch]]
        text = words.encode_tokens(words.tokenize(captions, TEXT_LENGTH))
        noise = initial_noise(seed + start, (batch, *cells))
        samples.extend(np.asarray(sampler(dit, noise, text, empty if plan.uses_negative else None)))
    return samples


def judge(
    samples: Sequence[np.ndarray],
    scenes: Sequence[Scene],
    decode: Decode,
    sheet: Path | None = None,
) -> Score:
    """Decode latents, score them against their scenes, and write a contact sheet of the first dozen.

    Args:
        samples: latents [16, T, h, w].
        scenes: what they should show.
        decode: latents -> video [3, F, H, W] in [-1, 1].
        sheet: PNG to write.
    """
    videos = [np.clip(decode(z), -1, 1) for z in samples]
    if sheet is not None:
        sheets.write(videos, scenes, sheet)
    return checker.score(zip(videos, scenes, strict=True))
