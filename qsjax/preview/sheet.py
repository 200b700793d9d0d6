"""A picture beside the video that is being made: a row of frames for every preview, the latest at the bottom."""

import logging
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from qsjax.disk import DiskError
from qsjax.video import write_contact_sheet

logger = logging.getLogger(__name__)

_COLUMNS, _WIDTH = 8, 96
"""Frames of a row, and pixels of one at least."""


class PreviewSheet:
    """Writes VIDEO.preview.png anew with every preview; for the callback of `Pipeline.generate`.

    Args:
        video: the file to be; the picture takes its name, and the place of the picture of an earlier run.
        steps: of the run.
    """

    def __init__(self, video: Path, steps: int) -> None:
        self.path, self._steps = video.with_name(f"{video.stem}.preview.png"), steps
        self._rows: list[np.ndarray] = []
        self._captions: list[str] = []

    def __call__(
        self, step: int, latents: object, frames: UInt8[np.ndarray, "B T h w 3"] | None = None
    ) -> None:
        """Add a row, if there are frames. A disk that refuses ends the previews, not the run."""
        if frames is None:
            return
        self._rows.append(frames[0])
        self._captions.append(f"step {step} of {self._steps}")
        try:
            write_contact_sheet(
                self._rows,
                self._captions,
                self.path,
                columns=min(_COLUMNS, frames.shape[1]),
                zoom=-(-_WIDTH // frames.shape[3]),
            )
        except DiskError as error:
            logger.warning("no preview: %s", error)
