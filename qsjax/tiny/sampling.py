"""Samples during training: videos of held-out captions, their score and a sheet to look at."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from qsjax.dit import DiT
from qsjax.sample.plan import Plan
from qsjax.sample.sampler import initial_noise, make_sampler
from qsjax.text import EncodedPrompt
from qsjax.tiny import checker, data, latents, words
from qsjax.tiny.checker import Score
from qsjax.video import write_contact_sheet

Decode = Callable[[np.ndarray], np.ndarray]


def held_out(seed: int, count: int) -> list[data.Scene]:
    """Scenes of a stream that no training sees."""
    return [data.scene(seed, index) for index in range(count)]


def sample(
    dit: DiT,
    scenes: Sequence[data.Scene],
    plan: Plan,
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
    encoded = words.encode([scene.caption for scene in scenes] + [""])
    cells = (latents.CHANNELS, (size[0] - 1) // 4 + 1, size[1] // 4, size[2] // 4)
    made: list[np.ndarray] = []
    for start in range(0, len(scenes), batch):
        text = EncodedPrompt(*(table[start : start + batch] for table in encoded))
        empty = EncodedPrompt(*(table[np.full(len(text.mask), -1)] for table in encoded))
        noise = initial_noise(seed + start, (len(text.mask), *cells))
        made.extend(np.asarray(sampler(dit, noise, text, empty if plan.uses_negative else None)))
    return made


def judge(
    made: Sequence[np.ndarray],
    scenes: Sequence[data.Scene],
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
        pictures = [
            np.round((video.transpose(1, 2, 3, 0) + 1) * 127.5).astype(np.uint8)
            for video in videos[:12]
        ]
        write_contact_sheet(pictures, [scene.caption for scene in scenes[:12]], sheet)
    return checker.score(zip(videos, scenes, strict=True))
