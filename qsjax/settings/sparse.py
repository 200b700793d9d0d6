"""Which steps are dense, which refresh the cache and which read it, known before anything runs."""

from dataclasses import dataclass, field
from typing import Literal

from qsjax.config import check_choices
from qsjax.errors import InputError
from qsjax.settings.residual import Residual
from qsjax.settings.sparsity import Sparsity

Scores = Literal["float", "int8"]
KINDS = DENSE, REFRESH, SPARSE = ("dense", "refresh", "sparse")
"""Kinds of steps; a refresh is dense, chooses the lists and writes the cache."""


@dataclass(frozen=True, kw_only=True)
class SparsePlan:
    """Sparse attention in a sampling run.

    Attributes:
        sparsity: which pairs of tokens are computed.
        residual: what is cached of the other pairs.
        interval: steps from refresh to refresh; 0 refreshes once.
        dense_steps: steps at the beginning that are dense, at least 1; the last of them is the first refresh.
        dense_layers: layers that are dense in every step, from 0, double blocks first.
        scores: precision of the products of queries and keys: float, or int8 with both quantized to 8 bits.
    """

    sparsity: Sparsity = field(default_factory=Sparsity)
    residual: Residual = field(default_factory=Residual)
    interval: int = 5
    dense_steps: int = 1
    dense_layers: tuple[int, ...] = ()
    scores: Scores = "float"

    def __post_init__(self) -> None:
        if self.interval < 0 or self.dense_steps < 1:
            raise InputError(
                f"interval={self.interval}, dense_steps={self.dense_steps}: the interval must not be negative (0 refreshes"
                " once), and the first step is dense in any case"
            )
        if any(layer < 0 for layer in self.dense_layers):
            raise InputError(f"dense_layers={list(self.dense_layers)}: layers count from 0")
        check_choices(self)

    def kinds(self, steps: int) -> tuple[str, ...]:
        """The kind of every step."""
        first = self.dense_steps - 1

        def kind(step: int) -> str:
            if step < first:
                return DENSE
            since = step - first
            refreshes = since % self.interval == 0 if self.interval else since == 0
            return REFRESH if refreshes else SPARSE

        return tuple(kind(step) for step in range(steps))
