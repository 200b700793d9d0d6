"""Means over clips with standard errors, and differences between methods clip by clip.

Clips differ among each other by far more than methods do (13 to 26 dB against tenths): two means with separate
errors say little. Methods see the same captions and the same noise, so the difference is taken per clip first.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qsjax.errors import InputError


class Estimate(NamedTuple):
    """A mean.

    Attributes:
        mean: over clips.
        error: its standard error, s / sqrt(n) with n - 1 degrees of freedom; None of a single clip.
        lowest: smallest value.
        count: n.
    """

    mean: float
    error: float | None
    lowest: float
    count: int


def estimate(values: Float[np.ndarray, " n"]) -> Estimate:
    """Mean and standard error of one value a clip.

    Raises:
        InputError: no values.
    """
    if not values.size:
        raise InputError("no clips: a mean needs at least one")
    wide = np.asarray(values, np.float64)
    error = float(wide.std(ddof=1) / np.sqrt(len(wide))) if len(wide) > 1 else None
    return Estimate(float(wide.mean()), error, float(wide.min()), len(wide))


def paired(values: Float[np.ndarray, " n"], baseline: Float[np.ndarray, " m"]) -> Estimate:
    """`values` minus `baseline`, clip by clip; the two must be of the same captions and noise.

    Raises:
        InputError: unlike numbers of clips, or none.
    """
    if values.shape != baseline.shape:
        raise InputError(
            f"{len(values)} clips against {len(baseline)}: a paired difference needs the same clips of both"
        )
    return estimate(np.asarray(values, np.float64) - np.asarray(baseline, np.float64))
