"""Rows of the tables of sparse attention: the outcomes of all calibration seeds of an experiment."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qsjax.evaluate.statistics import Estimate, estimate_over_seeds, paired_over_seeds
from qsjax.experiments.sparse.experiment import SparseOutcome
from qsjax.experiments.sparse.grid import SparseRow


class SparseLine(NamedTuple):
    """One value a seed and clip, in the captions' order; what is one value a run is the mean over seeds.

    Attributes:
        row: of the first seed.
        seeds: of calibrations; one where nothing is calibrated.
        psnr, ssim, latents, density, recall, dense_steps, skipped: as of an outcome.
    """

    row: SparseRow
    seeds: tuple[int, ...]
    psnr: Float[np.ndarray, "seeds clips"]
    ssim: Float[np.ndarray, "seeds clips"]
    latents: Float[np.ndarray, "seeds clips"]
    density: float
    recall: float
    dense_steps: int
    skipped: float

    def estimate(self, figure: str) -> Estimate:
        """The mean over seeds and clips."""
        return estimate_over_seeds(getattr(self, figure))

    def paired(self, figure: str, baseline: "SparseLine") -> Estimate | None:
        """The figure minus the baseline's, clip by clip and, where both are calibrated, seed by seed; None if they have no common seed."""
        ours, theirs = self.of(figure, self.seeds), baseline.of(figure, baseline.seeds)
        if self.row.method is not None and baseline.row.method is not None:
            common = tuple(seed for seed in self.seeds if seed in baseline.seeds)
            if not common:
                return None
            ours, theirs = self.of(figure, common), baseline.of(figure, common)
        if len(ours) < len(theirs):
            ours = np.broadcast_to(ours, theirs.shape)
        return paired_over_seeds(ours, theirs)

    def of(self, figure: str, seeds: Sequence[int]) -> Float[np.ndarray, "seeds clips"]:
        """A figure's values of some seeds."""
        return getattr(self, figure)[[self.seeds.index(seed) for seed in seeds]]


def lines(outcomes: Sequence[SparseOutcome]) -> list[SparseLine]:
    """One for all seeds of a label, in the order of the outcomes."""
    by_label: dict[tuple[str, str], list[SparseOutcome]] = {}
    for outcome in outcomes:
        by_label.setdefault((outcome.row.group, outcome.row.label), []).append(outcome)
    return [_line(members) for members in by_label.values()]


def _line(members: Sequence[SparseOutcome]) -> SparseLine:
    return SparseLine(
        members[0].row,
        tuple(one.row.seed for one in members),
        *(
            np.stack([getattr(one, name) for one in members])
            for name in ("psnr", "ssim", "latents")
        ),
        density=float(np.mean([one.density for one in members])),
        recall=float(np.mean([one.recall for one in members])),
        dense_steps=members[0].dense_steps,
        skipped=float(np.mean([one.skipped for one in members])),
    )
