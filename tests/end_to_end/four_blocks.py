"""The work that `cut.py` starts as "four-blocks FLOATS OUT": a small model sampled, trained, rounded and tuned."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
from calibration.calibration_models import RECIPE, RandomPipeline

from qsjax.calibration import METHODS, gather
from qsjax.calibration.checkpoint import calibrate_checkpoint
from qsjax.dit import load_dit

METHOD = replace(METHODS["tuned"], epochs=1, tune_steps=4)


def main(words: list[str]) -> int:
    """Calibrate, and go on where an earlier start was killed."""
    floats, out = map(Path, words)
    pipeline = RandomPipeline(load_dit(floats, dtype=jnp.float32))
    calibrate_checkpoint(
        floats,
        out,
        lambda folder: gather(pipeline, ["a", "b"], samples=2, whole=True, folder=folder),
        RECIPE,
        METHOD,
        described={},
        dtype=jnp.float32,
        progress=False,
    )
    return 0
