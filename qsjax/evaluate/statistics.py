"""Means with standard errors over clips and calibration seeds, and differences between methods clip by clip.

Clips differ among each other by far more than methods do (13 to 26 dB against tenths): two means with separate
errors say little. Methods see the same captions and the same noise, so the difference is taken per clip first.

A calibration is a draw as well: of captions, noise, moments and their order. A value of seed s and clip c is

    y[s, c] = m + a[s] + b[c] + e[s, c],    independent, variances A, B, E

and the mean over S seeds and C clips has the variance A/S + B/C + E/(S C). More clips do not make the first term
smaller. The variance of the seeds' means, over S, expects A/S + E/(S C), that of the clips' means, over C, expects
B/C + E/(S C); their sum holds E/(S C) twice, and the variance of what neither explains tells it (analysis of
variance of two crossed random factors with one value a cell; Searle, Casella, McCulloch: Variance Components, 1992, chapter 4).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qsjax.errors import InputError


class Estimate(NamedTuple):
    """A mean.

    Attributes:
        mean: over clips, and over seeds.
        error: its standard error; None where there is no variance to be seen, of a single clip. Of a single seed it is s / sqrt(n) with
            n - 1 degrees of freedom, and says nothing about other calibrations.
        lowest: smallest value of a clip.
        count: n, of clips.
        seeds: calibrations; of three, the error itself is uncertain by half.
    """

    mean: float
    error: float | None
    lowest: float
    count: int
    seeds: int = 1


def estimate(values: Float[np.ndarray, " n"]) -> Estimate:
    """Mean and standard error of one value a clip.

    Raises:
        InputError: no values.
    """
    return estimate_over_seeds(np.asarray(values)[None])


def estimate_over_seeds(values: Float[np.ndarray, "seeds n"]) -> Estimate:
    """Mean of one value a seed and clip, with the error that both have: of another calibration and other clips.

    Its square estimates A/S + B/C + E/(S C) of the module. The smaller of A and B is cut off at zero, below which a difference
    of variances may fall; where it is zero in truth, the error is a tenth or two too large.

    Raises:
        InputError: no values.
    """
    if not values.size:
        raise InputError("no clips: a mean needs at least one")
    wide = np.asarray(values, np.float64)
    seeds, clips = wide.shape
    error = None
    if clips > 1:
        by_seed, by_clip = wide.mean(axis=1), wide.mean(axis=0)
        of_clips = by_clip.var(ddof=1) / clips
        of_seeds = shared = 0.0
        if seeds > 1:
            of_seeds = by_seed.var(ddof=1) / seeds
            rest = wide - by_seed[:, None] - by_clip + wide.mean()
            shared = np.square(rest).sum() / ((seeds - 1) * (clips - 1)) / (seeds * clips)
        larger, smaller = max(of_seeds, of_clips), min(of_seeds, of_clips)
        error = float(np.sqrt(larger + max(smaller - shared, 0.0)))
    return Estimate(float(wide.mean()), error, float(wide.min()), clips, seeds)


def paired(values: Float[np.ndarray, " n"], baseline: Float[np.ndarray, " m"]) -> Estimate:
    """`values` minus `baseline`, clip by clip; the two must be of the same captions and noise.

    Raises:
        InputError: unlike numbers of clips, or none.
    """
    return paired_over_seeds(np.asarray(values)[None], np.asarray(baseline)[None])


def paired_over_seeds(
    values: Float[np.ndarray, "seeds n"], baseline: Float[np.ndarray, "_ m"]
) -> Estimate:
    """`values` minus `baseline`, seed by seed and clip by clip; a baseline that no seed changes has one row.

    Seeds are paired too: those of one number calibrate both methods on the same samples.

    Raises:
        InputError: unlike numbers of clips or seeds, or no clips.
    """
    if values.shape[1] != baseline.shape[1]:
        raise InputError(
            f"{values.shape[1]} clips against {baseline.shape[1]}: a paired difference needs the same clips of both"
        )
    if len(baseline) not in (1, len(values)):
        raise InputError(
            f"{len(values)} seeds against {len(baseline)}: a paired difference needs the same seeds of both"
        )
    return estimate_over_seeds(np.asarray(values, np.float64) - np.asarray(baseline, np.float64))
