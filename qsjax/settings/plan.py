"""The sampling plan: what each denoising step does, known before anything runs."""

from dataclasses import dataclass, replace
from typing import Annotated

from qsjax.errors import InputError
from qsjax.settings.skip import Skip
from qsjax.settings.sparse import ADAPTIVE, DENSE, SPARSE, SparsePlan
from qsjax.untrusted import Between, check_bounds

SHIFT = 7.0
"""HunyuanVideo's shift of the schedule."""


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """The settings of one sampling run; hashable, so that compiled programs can be cached by plan.

    Attributes:
        steps: Euler steps, each of which evaluates the model once, or twice with true guidance.
        shift: shift of the flow-match schedule; larger values spend more steps at high noise.
        guidance: embedded guidance scale, an input of guidance-distilled models; ignored by others.
        true_cfg: scale of classifier-free guidance with a negative prompt; 1 is off.
        sparse: sparse attention; None is dense.
        skip: rule for leaving out steps while little changes; None computes all steps.
    """

    steps: Annotated[int, Between(1, 10_000)] = 50
    shift: Annotated[float, Between(1e-6, 1e6)] = SHIFT
    guidance: Annotated[float, Between(0, 1e4)] = 6.0
    true_cfg: Annotated[float, Between(1, 1e3)] = 1.0
    sparse: SparsePlan | None = None
    skip: Skip | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}: at least 1 is needed")
        if not self.shift > 0:
            raise InputError(f"shift={self.shift}: must be positive; HunyuanVideo uses {SHIFT}")
        if not self.true_cfg >= 1:
            raise InputError(f"true_cfg={self.true_cfg}: must be at least 1, which switches it off")
        if not self.guidance >= 0:
            raise InputError(f"guidance={self.guidance}: must not be negative; HunyuanVideo uses 6")
        check_bounds(self)
        if self.skip is not None and self.sparse is not None and self.sparse.drift:
            raise InputError(
                "sparse.drift and skip.threshold do not go together: a step that is left out has no attention to measure; take"
                " one of them"
            )

    @property
    def uses_negative(self) -> bool:
        """Whether the plan uses a negative prompt."""
        return self.true_cfg > 1

    @property
    def remembers(self) -> bool:
        """Whether steps share a cache in addition to the latents."""
        return self.sparse is not None or self.skip is not None

    @property
    def dense(self) -> "SamplingPlan":
        """The same plan with dense attention and without step skipping."""
        return replace(self, sparse=None, skip=None)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every step: dense, refresh, sparse or adaptive."""
        return (DENSE,) * self.steps if self.sparse is None else self.sparse.kinds(self.steps)

    @property
    def never_sparse(self) -> bool:
        """Whether sparse attention was asked for, and every step is full all the same."""
        return self.sparse is not None and not {SPARSE, ADAPTIVE} & set(self.kinds)
