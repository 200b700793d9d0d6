"""Whether videos of the tiny model still show what their captions say: a score that does not ask for the same pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from qsjax.tiny.checker import hits
from qsjax.tiny.scenes import Scene
from qsjax.video import to_uint8


def caption_scores(
    frames: Float[np.ndarray, "B F Y X 3"], scenes: Sequence[Scene]
) -> Float[np.ndarray, " B"]:
    """1 for every clip whose objects all have the colour, the shape and the motion of the caption, else 0.

    The frames are read with 8 bits, as the tables of docs/tiny_model.md are.

    Args:
        frames: in [0, 1].
        scenes: one a clip, which the captions are of.

    Returns:
        float64.
    """
    videos = np.moveaxis(to_uint8(frames), -1, 1) / np.float32(127.5) - 1
    pairs = zip(videos, scenes, strict=True)
    return np.array([float(all(hits(video, scene))) for video, scene in pairs], np.float64)
