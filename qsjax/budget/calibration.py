"""What calibration takes: operations and hours, device memory, and disk; all estimated."""

from dataclasses import dataclass
from math import prod

from qsjax.budget.devices import Device
from qsjax.budget.flops import StepFlops
from qsjax.budget.size import Size
from qsjax.budget.weights import tensors
from qsjax.dit import DiTConfig
from qsjax.errors import InputError
from qsjax.quant import Precision, Recipe

FORWARDS_A_STEP = 5
"""Forward passes of a block that a training step is worth: the float teacher 1, the fake-quantized student 1, the student
again when its gradient is taken 1, and the gradient 2."""
SHARE_OF_PEAK = 0.4
"""Of a device's bfloat16 peak that the hours assume; not measured."""
KINDS = ("double_blocks", "single_blocks")
_BFLOAT16, _FLOAT32 = 2, 4


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """Training of every block's transforms and clips by itself, on stored inputs (QuantSparse, section 3.2).

    Attributes:
        dit: all sizes.
        size: of the samples' videos.
        samples: S.
        epochs: passes over them; a step sees one sample.
    """

    dit: DiTConfig
    size: Size
    samples: int = 20
    epochs: int = 15

    def __post_init__(self) -> None:
        for name in ("samples", "epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: calibration needs at least 1")

    @property
    def steps_a_block(self) -> int:
        """Of training."""
        return self.samples * self.epochs

    @property
    def flops(self) -> int:
        """Operations of all steps of all blocks, attention dense."""
        forward = StepFlops.count(self.dit, self.size)
        return FORWARDS_A_STEP * self.steps_a_block * (forward.linears + forward.attention)

    @property
    def boundary_bytes(self) -> int:
        """Disk that the activations between blocks take: a file of inputs and one of outputs, of the float blocks and of the quantized
        ones, each S x tokens x D in bfloat16."""
        return 4 * self.samples * self.size.tokens * self.dit.hidden_size * _BFLOAT16

    def hours(self, device: Device) -> float:
        """Estimate: all operations of training at `SHARE_OF_PEAK` of the bfloat16 peak.

        Not in it: sampling the captions that the samples come from (`StepFlops.total` times steps, for each of them), the
        passes that observe and measure a block before and after its training, and the disk.
        """
        return self.flops / (SHARE_OF_PEAK * device.peaks.bfloat16_flops) / 3600

    def step_bytes(self, kind: str | None = None) -> dict[str, int]:
        """Estimate of the device memory that a training step takes, by what takes it.

        Args:
            kind: of the block; None is the one that takes more.
        """
        kinds = [one for one in KINDS if _count(self.dit, one)] if kind is None else [kind]
        return max(map(self._step_bytes, kinds), key=lambda step: sum(step.values()))

    def _step_bytes(self, kind: str) -> dict[str, int]:
        """Weights are float32: the block as it is; its linear layers with their transforms merged, as fake-quantized
        ones, and as the gradient of these. Scores of attention, 256 MB at a time, are not in it. For a single block of 8,192
        tokens a v5e's compiler counts as much to a quarter (tests/calibration/test_calibrate_deviceless.py, a slow test); a
        double block has not been compiled."""
        block, linears = _parameters(self.dit, kind)
        token = _channels(self.dit, kind) * _BFLOAT16
        return {
            "block_weights": block * _FLOAT32,
            "merged_weights": linears * _FLOAT32,
            "fake_quantized_weights": linears * _FLOAT32,
            "weight_gradients": linears * _FLOAT32,
            "activations": self.size.tokens * token,
        }


def _count(config: DiTConfig, kind: str) -> int:
    return config.num_double_blocks if kind == "double_blocks" else config.num_single_blocks


def _parameters(config: DiTConfig, kind: str) -> tuple[int, int]:
    """Of one block, and of its linear layers without modulation and biases."""
    floating = Precision(weights=16)
    recipe = Recipe(name="bf16", blocks=floating, modulation=floating, refiner=floating)
    block = linears = 0
    for path, shape, _ in tensors(config, recipe):
        if path[0] == kind:
            size = prod(shape[1:])
            block += size
            linears += size if path[-1] == "kernel" and "modulation" not in path else 0
    return block, linears


def _channels(config: DiTConfig, kind: str) -> int:
    """Bfloat16 values a token that a step holds at most: in the gradient of a block that was computed again.

    With D channels and M of the MLP, a single block holds its input, target, output and that one's gradient, 4 D; the
    norm, plain and quantized, 2 D; the first layer's output 3 D + M and its gradient, as much; queries and keys, normed
    and rotated, 4 D; attention's output, plain and quantized, 2 D; GELU, plain, rotated and quantized, 3 M. A double
    block has another norm, 2 D, and the sum between attention and MLP with its gradient, 2 D.
    """
    single = 18 * config.hidden_size + 5 * config.mlp_size
    return single + (4 * config.hidden_size if kind == "double_blocks" else 0)
