"""When a step is left out: TeaCache's rule (arXiv 2411.19108, section 3.3), which `qsjax.sample.skip` computes."""

import math
from dataclasses import dataclass

from qsjax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Skip:
    """When a step is left out.

    Attributes:
        threshold: steps are left out while the change of the tokens adds up to less; 0 leaves out none. TeaCache takes 0.1 and
            0.15 for HunyuanVideo.
        coefficients: of the polynomial that rescales that change, highest power first; none is the change itself.
    """

    threshold: float = 0.0
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf or not all(map(math.isfinite, self.coefficients)):
            raise InputError(
                f"skip threshold {self.threshold}, coefficients {list(self.coefficients)}: a threshold is 0 (off) or more, all"
                " are finite"
            )
