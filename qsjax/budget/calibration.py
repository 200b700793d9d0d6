"""The cost of calibration: operations of every pass, hours and disk; all estimated."""

from dataclasses import dataclass
from math import comb, prod

from qsjax.budget.devices import Device
from qsjax.budget.flops import StepFlops
from qsjax.budget.passes import (
    COMPARE,
    FLOAT32,
    FORWARD,
    MEASURE,
    OBSERVE,
    PLANNED,
    TEACHER,
    TRAIN,
    TUNE,
    TUNE_BATCH,
    Forwards,
    PlannedMethod,
    feedback,
)
from qsjax.budget.size import Size
from qsjax.budget.weights import Weights
from qsjax.dit import DiTConfig
from qsjax.errors import InputError
from qsjax.settings.calibration import EPOCHS, SAMPLES, early_samples, first_steps

SHARE_OF_PEAK = 0.4
"""Share of a device's bfloat16 peak that the hours assume; not measured."""
STEPS = 50
"""Of each sampled video."""
_BFLOAT16, _FLOAT32 = 2, 4


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """Blocks are trained one by one on stored inputs (QuantSparse, section 3.2), rounded with error feedback, and tuned together.

    Attributes:
        dit: sizes of the transformer.
        size: size of the samples' videos.
        method: which of the passes there are.
        samples: number of samples, S; each is the model's input at one step of a video's sampling.
        captions: videos that are sampled for them; None takes one for each sample.
        steps: of sampling a video.
        epochs: passes over the samples; a training step sees one sample.
    """

    dit: DiTConfig
    size: Size
    method: PlannedMethod = PLANNED["msad"]
    samples: int = SAMPLES
    captions: int | None = None
    steps: int = STEPS
    epochs: int = EPOCHS

    def __post_init__(self) -> None:
        for name in ("samples", "epochs", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: calibration needs at least 1")
        if self.captions is not None and self.captions < 1:
            raise InputError(f"captions {self.captions}: calibration needs at least 1")

    @property
    def videos(self) -> int:
        """Captions that are sampled; more than samples are not needed."""
        return self.samples if self.captions is None else min(self.captions, self.samples)

    @property
    def steps_a_block(self) -> int:
        """Training steps for each block."""
        return self.samples * self.epochs if self.method.learns else 0

    @property
    def evaluations(self) -> int:
        """Evaluations of the float model that the captions take.

        A video is sampled up to the last step that gives a sample: m to a video, each among the first steps by the share that
        these have, else anywhere in the rest; the last of k that lie anywhere is on average at k / (k + 1). Tuning sees all steps.
        """
        if self.method.tune_steps:
            return self.videos * self.steps
        first, early = (
            first_steps(self.steps),
            early_samples(self.samples, self.steps) / self.samples,
        )
        each, few = divmod(self.samples, self.videos)
        counts = ((each, self.videos - few), (each + 1, few))
        return round(sum(videos * self._last(each, early, first) for each, videos in counts))

    def _last(self, each: int, early: float, first: int) -> float:
        """Mean number of steps up to the last of so many samples of one video."""
        late = 1 - early
        steps = early**each * first * each / (each + 1)
        for k in range(1, each + 1):
            chance = comb(each, k) * late**k * early ** (each - k)
            steps += chance * (first + (self.steps - first) * k / (k + 1))
        return steps

    def passes(self) -> dict[str, int]:
        """Operations by purpose, in the order in which they happen; blocks have dense attention."""
        step = StepFlops.count(self.dit, self.size)
        rounding = feedback(self.dit, self.size)
        samples = self.samples

        def of(forwards: Forwards, times: int) -> int:
            return times * round(
                forwards.linears * step.linears + forwards.attention * step.attention
            )

        made = {
            "sampling the captions": self.evaluations * step.total(),
            "observing": of(OBSERVE, samples),
            # Rounded to nearest, before training, and at the end.
            "measuring": of(MEASURE, 3 * samples),
            # Rounded to nearest, and at the end.
            "comparing layers": of(COMPARE, 2 * samples),
            "training": of(
                TRAIN + TEACHER if self.method.attention_terms else TRAIN, self.steps_a_block
            ),
            "Gram matrices": of(rounding.forwards, samples) + samples * rounding.grams,
            "rounding": rounding.factors,
            "quantized tokens": of(FORWARD, samples),
            "tuning": of(TUNE, TUNE_BATCH * self.method.tune_steps)
            + TUNE_BATCH * self.method.tune_steps * 3 * step.rest,
        }
        return {name: count for name, count in made.items() if count}

    @property
    def flops(self) -> int:
        """Operations of all passes."""
        return sum(self.passes().values())

    def hours(self, device: Device) -> float:
        """Estimated hours: all operations at `SHARE_OF_PEAK` of the bfloat16 peak, those of rounding as so many in float32; reading
        and writing files is not included."""
        passes = self.passes()
        passes["rounding"] *= FLOAT32
        return sum(passes.values()) / (SHARE_OF_PEAK * device.peaks.bfloat16_flops) / 3600

    def disk(self, weights: Weights) -> dict[str, int]:
        """Bytes of the files that calibration keeps until its end, beside both checkpoints.

        Between two blocks there are four: inputs and outputs of the float block and of the quantized one, each S x tokens x hidden
        size in bfloat16. Tuning keeps the latents of all videos before and after every step, float32; the rounded transformer, of
        these `weights`; and scales and biases with two moments of Adam.
        """
        tokens = self.size.tokens * self.dit.hidden_size
        found = {"block_inputs_and_outputs": 4 * self.samples * tokens * _BFLOAT16}
        if self.method.tune_steps:
            latents = self.size.video_tokens * prod(self.dit.patch_size) * self.dit.in_channels
            found["trajectories"] = self.videos * (self.steps + 1) * latents * _FLOAT32
            found["rounded_transformer"] = weights.total
            found["tuning_state"] = 3 * (weights.by_group["scales"] + weights.by_group["biases"])
        return found
