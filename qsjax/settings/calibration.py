"""What a calibration sees of sampling runs unless it is told otherwise; its plan counts with the same."""

SAMPLES = 30
"""Inputs that blocks are calibrated with, each of a caption of its own."""
EPOCHS = 10
"""Passes over them, for every block."""
SAMPLED_EARLY = 1 / 3
"""Share of the samples that are of the first steps; of tuning's moments it is the method's `tune_early`."""


def first_steps(steps: int) -> int:
    """How many steps of a run are its first: a tenth, and one at least."""
    return -(-steps // 10)


def early_samples(samples: int, steps: int) -> int:
    """How many samples are of the first steps of runs with so many."""
    return round(samples * SAMPLED_EARLY) if steps > first_steps(steps) else samples
