"""What to do in each denoising step, as data that is known before anything runs."""

from dataclasses import dataclass, replace

from qsjax.errors import InputError
from qsjax.settings.skip import Skip
from qsjax.settings.sparse import DENSE, SparsePlan

SHIFT = 7.0
"""HunyuanVideo's."""


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """The settings of one sampling run; hashable, so that a compiled sampler can be kept by plan.

    Attributes:
        steps: Euler steps, each of which evaluates the model once, or twice with true guidance.
        shift: of the flow-match schedule; larger spends more steps at high noise.
        guidance: embedded guidance scale, an input of guidance-distilled models; ignored by others.
        true_cfg: scale of classifier-free guidance with a negative prompt; 1 is off.
        sparse: sparse attention; None is dense.
        skip: steps that are left out while little changes; None leaves out none.
    """

    steps: int = 50
    shift: float = SHIFT
    guidance: float = 6.0
    true_cfg: float = 1.0
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

    @property
    def uses_negative(self) -> bool:
        """Whether a negative prompt takes part."""
        return self.true_cfg > 1

    @property
    def remembers(self) -> bool:
        """Whether steps hand each other more than latents."""
        return self.sparse is not None or self.skip is not None

    @property
    def dense(self) -> "SamplingPlan":
        """The same with dense attention and every step computed."""
        return replace(self, sparse=None, skip=None)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every step: dense, refresh or sparse."""
        return (DENSE,) * self.steps if self.sparse is None else self.sparse.kinds(self.steps)
