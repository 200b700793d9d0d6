"""Which steps are dense, which refresh the cache and which read it: known before anything runs."""

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_sparse_attention.scores import SCORES
from qsjax.config import nearest
from qsjax.errors import InputError
from qsjax.residual import Gains, Residual
from qsjax.sparse import Sparsity

KINDS = DENSE, REFRESH, SPARSE = ("dense", "refresh", "sparse")
"""Kinds of steps; a refresh is dense, decides the lists and writes the cache."""


@dataclass(frozen=True, kw_only=True)
class SparsePlan:
    """Sparse attention in a sampling run.

    Attributes:
        sparsity: which pairs of tokens are computed.
        residual: how the others are remembered.
        interval: steps from refresh to refresh; 0 refreshes only once.
        dense_steps: at the beginning; the last of them is the first refresh. At least 1: something must decide the lists.
        dense_layers: that are dense in every step, numbers from 0, double blocks first.
        scores: "float", or "int8" for queries and keys in 8 bits.
    """

    sparsity: Sparsity = field(default_factory=Sparsity)
    residual: Residual = field(default_factory=Residual)
    interval: int = 5
    dense_steps: int = 1
    dense_layers: tuple[int, ...] = ()
    scores: str = "float"

    def __post_init__(self) -> None:
        if self.interval < 0 or self.dense_steps < 1:
            raise InputError(
                f"interval={self.interval}, dense_steps={self.dense_steps}: the interval must not be negative (0 refreshes"
                " once), and the first step is dense in any case"
            )
        if any(layer < 0 for layer in self.dense_layers):
            raise InputError(f"dense_layers={list(self.dense_layers)}: layers count from 0")
        if self.scores not in SCORES:
            raise InputError(f"no scores {self.scores!r}; {nearest(self.scores, SCORES)}")

    def kinds(self, steps: int) -> tuple[str, ...]:
        """The kind of every step."""
        first = self.dense_steps - 1

        def kind(step: int) -> str:
            if step < first:
                return DENSE
            since = step - first
            again = since % self.interval == 0 if self.interval else since == 0
            return REFRESH if again else SPARSE

        return tuple(kind(step) for step in range(steps))


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
