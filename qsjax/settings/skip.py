"""The rule for leaving out steps: TeaCache's (arXiv 2411.19108, section 3.3); `qsjax.sample.skip` computes it."""

import math
from dataclasses import dataclass
from typing import Annotated

from qsjax.errors import InputError
from qsjax.untrusted import Between, check_bounds


@dataclass(frozen=True, kw_only=True)
class Skip:
    """The rule for leaving out steps.

    Attributes:
        threshold: steps are left out while the summed change of the tokens is below it; 0 computes all steps. TeaCache uses 0.1
            and 0.15 for HunyuanVideo.
        coefficients: coefficients of the polynomial that rescales the change, highest power first; empty does not rescale it.
    """

    threshold: float = 0.0
    coefficients: tuple[Annotated[float, Between(-1e9, 1e9)], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf or not all(map(math.isfinite, self.coefficients)):
            raise InputError(
                f"skip threshold {self.threshold}, coefficients {list(self.coefficients)}: a threshold is 0 (off) or more, all"
                " are finite"
            )
        check_bounds(self)
