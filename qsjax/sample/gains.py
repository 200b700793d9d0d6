"""How far a step extrapolates what refreshes have seen: the numbers of a run's cache."""

import jax.numpy as jnp
import numpy as np

from qsjax.residual import Gains
from qsjax.settings import REFRESH, SPARSE, SparsePlan


def gains(plan: SparsePlan, sigma: np.ndarray) -> Gains:
    """The cache's numbers of all steps, leading axis steps.

    With r the last refresh and p the one before, g is (i - r) / (r - p) in steps, or the same of noise levels
    (QuantSparse adds the whole change instead, g = 1). It is 0 before the second refresh.

    Args:
        plan: of the run.
        sigma: noise levels, one more than steps.
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
            before, last = (float(clock[at]) for at in refreshes[-2:])
            reach[step] = (float(clock[step]) - last) / (last - before)
    return Gains(jnp.asarray(reach), jnp.asarray(later))
