"""A training run as a list of phases, small clips first: most of what there is to learn needs few tokens."""

from dataclasses import dataclass

from qsjax.errors import InputError


@dataclass(frozen=True)
class Phase:
    """A stretch of training on clips of one size.

    Attributes:
        frames: 4k + 1.
        size: pixels on a side.
        batch: clips a step.
        steps: optimizer steps.
    """

    frames: int
    size: int
    batch: int
    steps: int

    @classmethod
    def parse(cls, text: str) -> tuple["Phase", ...]:
        """Read FRAMESxSIZExBATCHxSTEPS,...

        Raises:
            InputError: not of this form, or a number below 1.
        """
        try:
            phases = tuple(cls(*map(int, part.split("x"))) for part in text.split(","))
        except (TypeError, ValueError):
            phases = ()
        if not phases or any(
            min(phase.frames, phase.size, phase.batch, phase.steps) < 1 for phase in phases
        ):
            raise InputError(
                f"{text!r} is not FRAMESxSIZExBATCHxSTEPS,..., for example 17x32x16x700,33x64x8x900"
            )
        return phases


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Phases and the course of the learning rate over all of them.

    Attributes:
        phases: in order.
        warm_up: steps until the peak rate is reached.
        decay: the last fraction of all steps, over which the rate falls linearly to a fiftieth.
    """

    phases: tuple[Phase, ...]
    warm_up: int = 100
    decay: float = 0.4

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def rate(self, step: int) -> float:
        """The learning rate of a step as a fraction of the peak."""
        rising = min(1.0, (step + 1) / self.warm_up)
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return rising * min(1.0, 0.02 + 0.98 * falling)

    def place(self, step: int) -> tuple[Phase, int]:
        """The phase of a step, and the number of clips seen before it."""
        clips, left = 0, step
        for phase in self.phases:
            if left < phase.steps:
                return phase, clips + left * phase.batch
            left, clips = left - phase.steps, clips + phase.steps * phase.batch
        raise InputError(f"step {step} is after the last phase; there are {self.steps} steps")
