"""How long a grid will still take: a mean of what rows of the same kind have taken."""

from collections.abc import Hashable, Sequence

import numpy as np


class Hours:
    """Times of rows by their kind, those of an earlier run included."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, list[float]] = {}

    def add(self, kind: Hashable, seconds: float) -> None:
        """A row of a kind took so long; one of no time at all says nothing."""
        if seconds > 0:
            self._seconds.setdefault(kind, []).append(seconds)

    def left(self, kinds: Sequence[Hashable]) -> str:
        """For people: the time of rows of these kinds; a kind that has not been seen takes as long as the mean of those that were."""
        means = {kind: float(np.mean(seconds)) for kind, seconds in self._seconds.items()}
        if not means:
            return "an unknown time"
        other = float(np.mean(list(means.values())))
        total = sum(means.get(kind, other) for kind in kinds)
        return f"{total / 3600:.1f} hours" if total >= 3600 else f"{total / 60:.0f} minutes"
