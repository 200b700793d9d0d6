"""How far each sparse step extrapolates from the last two refreshes."""

from typing import Any

import numpy as np

from qsjax.residual import Gains
from qsjax.settings import REFRESH, SPARSE, SparsePlan


def gains(plan: SparsePlan, sigma: np.ndarray) -> Gains:
    """The gains of all steps, with steps as the leading axis.

    For step i, with r the last refresh and p the one before, g is (i - r) / (r - p), measured in steps or in noise levels.
    QuantSparse adds the whole change instead, g = 1. Before the second refresh, g is 0.

    Args:
        plan: the plan of sparse attention.
        sigma: noise levels, float32 [steps + 1].
    """
    clock = np.arange(len(sigma)) if plan.residual.clock == "steps" else sigma
    kinds = plan.kinds(len(sigma) - 1)
    reach, later = np.zeros((2, len(kinds)), np.float32)
    refreshes: list[int] = []
    for step, kind in enumerate(kinds):
        if kind == REFRESH:
            later[step] = float(bool(refreshes))
            refreshes.append(step)
        elif kind == SPARSE and len(refreshes) > 1:
            previous, last = (float(clock[refresh]) for refresh in refreshes[-2:])
            reach[step] = (float(clock[step]) - last) / (last - previous)
    make: Any = Gains  # NumPy's arrays stand for JAX's, as in `schedule`
    return make(reach, later)
