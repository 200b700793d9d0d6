"""Which moments of sampling runs a calibration sees: those of the first steps more often than their share.

What the first steps get wrong, later ones follow: nearly all of a video's distance from the float model's comes from them
(docs/quantization.md), and they are few. A moment is one step of one run.
"""

import numpy as np
from jaxtyping import Int

from qsjax.settings.calibration import early_samples, first_steps


def sampled_steps(samples: int, steps: int, seed: int) -> Int[np.ndarray, " samples"]:
    """A denoising step for every sample, in random order.

    `early_samples` of them are spread over the first steps, the others over the rest: one from each of as many equal stretches.

    Args:
        samples: how many.
        steps: of a run.
        seed: of the places in their stretches, and of the order.
    """
    random = np.random.default_rng(seed)
    first, early = first_steps(steps), early_samples(samples, steps)
    parts = [(0, first, early), (first, steps, samples - early)]
    chosen = [
        start + (np.arange(count) + random.random(count)) / max(count, 1) * (stop - start)
        for start, stop, count in parts
    ]
    return random.permutation(np.minimum(np.concatenate(chosen).astype(int), steps - 1))


def moment_order(
    runs: int, steps: int, needed: int, *, early: float, seed: int
) -> Int[np.ndarray, " needed"]:
    """Which moment tuning sees when, numbered as in `Trajectories.moments`.

    Those of the first steps and the others take turns, by the share `early`; of each all come once in random order before any
    comes twice.

    Args:
        runs: sampling runs.
        steps: of each.
        needed: how many are wanted.
        early: share of the first steps; 0 draws from all steps alike.
        seed: of the order.
    """
    random = np.random.default_rng(seed)
    moments = np.arange(runs * steps)
    early = early if steps > 1 else 0.0
    first = (moments % steps < first_steps(steps)) & (early > 0)
    number = np.arange(needed)
    turns = np.floor((number + 1) * early) > np.floor(number * early)
    order = np.empty(needed, int)
    for group, places in ((moments[first], turns), (moments[~first], ~turns)):
        count = int(places.sum())
        passes = [random.permutation(group) for _ in range(-(-count // max(len(group), 1)))]
        order[places] = np.concatenate(passes)[:count] if count else []
    return order
