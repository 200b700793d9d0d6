"""Clips to look at, and how far decoded ones are from real ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qsjax.tiny.scenes import Scene
from qsjax.video import write_contact_sheet

ROWS = 12


def write(videos: Sequence[np.ndarray], scenes: Sequence[Scene], sheet: Path) -> None:
    """Write a contact sheet of the first dozen videos [3, F, H, W] in [-1, 1]."""
    pictures = [
        np.round((np.clip(video, -1, 1).transpose(1, 2, 3, 0) + 1) * 127.5).astype(np.uint8)
        for video in videos[:ROWS]
    ]
    write_contact_sheet(pictures, [scene.caption for scene in scenes[:ROWS]], sheet)


def decibels(videos: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean PSNR over pairs of clips in [-1, 1]."""
    errors = [
        np.mean(np.square(a - np.clip(b, -1, 1))) for a, b in zip(videos, others, strict=True)
    ]
    return float(np.mean(-10 * np.log10(np.array(errors) / 4)))
