"""Which steps are dense, which refresh the cache and which read it, known before anything runs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from qsjax.config import check_choices
from qsjax.errors import InputError
from qsjax.settings.residual import Residual
from qsjax.settings.sparsity import Sparsity
from qsjax.untrusted import Between, check_bounds

Scores = Literal["float", "int8"]
_Steps = Between(0, 10_000)
KINDS = DENSE, REFRESH, SPARSE, ADAPTIVE = ("dense", "refresh", "sparse", "adaptive")
"""Kinds of steps; a refresh is dense, chooses the lists and writes the cache; an adaptive step is decided on the device to be a
refresh or sparse."""


@dataclass(frozen=True, kw_only=True)
class SparsePlan:
    """Sparse attention in a sampling run.

    Attributes:
        sparsity: which pairs of tokens are computed.
        residual: what is cached of the other pairs.
        interval: steps from refresh to refresh, with `drift` at most; 0 refreshes once, or whenever `drift` says so.
        refresh_at: places of the refreshes as shares of the run, in place of `interval`: 0.3 of 50 steps is step 15, the first
            being 0.
        drift: error of a sparse step's attention above which the next step is a refresh, in place of every `interval`th; 0 keeps
            to the plan. The error is relative to full attention, measured on `sparsity.profiled_rows` rows of every layer.
        least_interval: with `drift`, steps from refresh to refresh at least.
        dense_steps: steps at the beginning that are full, at least 1; the last of them is a refresh, and so are those that
            `refresh_at` names.
        dense_layers: layers that are dense in every step, from 0, double blocks first.
        scores: precision of the products of queries and keys: float, or int8 with both quantized to 8 bits.
    """

    sparsity: Sparsity = field(default_factory=Sparsity)
    residual: Residual = field(default_factory=Residual)
    interval: Annotated[int, _Steps] = 5
    refresh_at: tuple[float, ...] = ()
    drift: float = 0.0
    least_interval: Annotated[int, _Steps] = 2
    dense_steps: Annotated[int, _Steps] = 1
    dense_layers: tuple[Annotated[int, Between(0, 4096)], ...] = ()
    scores: Scores = "float"

    def __post_init__(self) -> None:
        if self.interval < 0 or self.dense_steps < 1:
            raise InputError(
                f"interval={self.interval}, dense_steps={self.dense_steps}: the interval must not be negative (0 refreshes"
                " once), and the first step is dense in any case"
            )
        if not all(0 <= place < 1 for place in self.refresh_at):
            raise InputError(
                f"refresh_at={list(self.refresh_at)}: places are shares of the run, from 0 to less than 1"
            )
        if not 0 <= self.drift < math.inf or self.least_interval < 1:
            raise InputError(
                f"drift={self.drift}, least_interval={self.least_interval}: a drift is 0 (off) or more, the least interval 1 or"
                " more"
            )
        if self.drift and (self.refresh_at or 0 < self.interval < self.least_interval):
            raise InputError(
                f"drift={self.drift} places refreshes itself, between least_interval={self.least_interval} and"
                f" interval={self.interval} steps after the last: leave out refresh_at, and let the interval be the longer one"
            )
        if any(layer < 0 for layer in self.dense_layers):
            raise InputError(f"dense_layers={list(self.dense_layers)}: layers count from 0")
        check_bounds(self)
        check_choices(self)

    def kinds(self, steps: int) -> tuple[str, ...]:
        """The kind of every step; with `drift`, those after the first refresh are adaptive."""
        first = self.dense_steps - 1
        refreshes = {first, *self._later(first, steps)}

        def kind(step: int) -> str:
            if step in refreshes:
                return REFRESH
            if step < first:
                return DENSE
            return ADAPTIVE if self.drift else SPARSE

        return tuple(kind(step) for step in range(steps))

    def _later(self, first: int, steps: int) -> Iterable[int]:
        """Refreshes besides the first."""
        if self.refresh_at:
            return (round(place * steps) for place in self.refresh_at)
        if self.drift:
            return ()
        return range(first, steps, self.interval) if self.interval else ()
