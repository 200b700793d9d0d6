"""A compressed model that was made several times, with another calibration seed each: comparisons by seed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from qsjax.errors import InputError
from qsjax.evaluate.compare import Comparison
from qsjax.evaluate.statistics import Estimate, estimate_over_seeds, paired_over_seeds


@dataclass(frozen=True, eq=False)
class Repeats:
    """Comparisons of the same clips.

    Attributes:
        by_seed: calibration seed -> comparison; at least one.
        fixed: no seed changes the model, as round-to-nearest: its one comparison is that of all seeds.
    """

    by_seed: Mapping[int, Comparison]
    fixed: bool = False

    def __post_init__(self) -> None:
        if not self.by_seed or (self.fixed and len(self.by_seed) > 1):
            raise InputError(
                f"{len(self.by_seed)} comparisons: at least one is needed, and one of a model that no seed changes"
            )

    def values(self, figure: str) -> Float[np.ndarray, "seeds clips"] | None:
        """A figure of every seed and clip, that of velocity as the mean over steps; None where a comparison lacks it."""
        return self._of(figure, tuple(self.by_seed))

    def estimate(self, figure: str) -> Estimate | None:
        """The mean over seeds and clips; None where a comparison lacks the figure."""
        values = self.values(figure)
        return None if values is None else estimate_over_seeds(values)

    def paired(self, figure: str, baseline: "Repeats") -> Estimate | None:
        """The figure minus the baseline's, seed by seed and clip by clip, over the seeds that both have.

        None where one of them lacks the figure, or no seed is common.

        Raises:
            InputError: the two are of unlike clips.
        """
        ours, theirs = tuple(self.by_seed), tuple(baseline.by_seed)
        if not (self.fixed or baseline.fixed):
            ours = theirs = tuple(seed for seed in ours if seed in baseline.by_seed)
        if not ours:
            return None
        values, base = self._of(figure, ours), baseline._of(figure, theirs)
        if values is None or base is None:
            return None
        if self.fixed and len(values) != len(base):
            values = np.broadcast_to(values, (len(base), values.shape[1]))
        return paired_over_seeds(values, base)

    def _of(self, figure: str, seeds: tuple[int, ...]) -> Float[np.ndarray, "seeds clips"] | None:
        found = [getattr(self.by_seed[seed], figure) for seed in seeds]
        if any(values is None for values in found):
            return None
        return np.stack([x.mean(axis=0) if figure == "velocity" else x for x in found])
