"""Streams of scenes, each the scenes of one seed: what training sees, calibration and evaluation do not."""

from qsjax.tiny.scenes import Scene, scene

FIT, TRAIN_VAE, TRAIN_DIT, TRAIN_DISTIL = 12345, 1, 2, 3
"""Of training: fitting the latent space, and the training of each part."""
CALIBRATION = 98
"""Of captions that calibrate."""
HELD_OUT = 99
"""Of captions that evaluate."""


def held_out(seed: int, count: int) -> list[Scene]:
    """The first scenes of a stream that no training sees."""
    return [scene(seed, index) for index in range(count)]
