"""The cost of calibration: operations, hours, device memory and disk; all estimated."""

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
"""Cost of a training step in forward passes of a block: 1 for the float teacher, 1 for the fake-quantized student, 1 for the
student again when it is rematerialized for its gradient, and 2 for the gradient."""
SHARE_OF_PEAK = 0.4
"""Share of a device's bfloat16 peak that the hours assume; not measured."""
KINDS = ("double_blocks", "single_blocks")
_BFLOAT16, _FLOAT32 = 2, 4


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """Training of each block's transforms and clips separately, on stored inputs (QuantSparse, section 3.2).

    Attributes:
        dit: sizes of the transformer.
        size: size of the samples' videos.
        samples: number of samples, S.
        epochs: passes over the samples; a training step sees one sample.
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
        """Training steps for each block."""
        return self.samples * self.epochs

    @property
    def flops(self) -> int:
        """Operations of all training steps of all blocks, with dense attention."""
        forward = StepFlops.count(self.dit, self.size)
        return FORWARDS_A_STEP * self.steps_a_block * (forward.linears + forward.attention)

    @property
    def boundary_bytes(self) -> int:
        """Disk space of the activations between blocks: four files, inputs and outputs of the float block and of the quantized
        one, each S x tokens x hidden size in bfloat16."""
        return 4 * self.samples * self.size.tokens * self.dit.hidden_size * _BFLOAT16

    def hours(self, device: Device) -> float:
        """Estimated hours: all operations of training at `SHARE_OF_PEAK` of the bfloat16 peak.

        Not included are sampling the captions that the samples come from (`StepFlops.total` times steps, for each caption), the
        passes that observe and measure a block before and after its training, and disk access.
        """
        return self.flops / (SHARE_OF_PEAK * device.peaks.bfloat16_flops) / 3600

    def step_bytes(self, kind: str | None = None) -> dict[str, int]:
        """Estimated device memory of a training step, in bytes by purpose.

        Args:
            kind: kind of the block, one of `KINDS`; None is the one that takes more.
        """
        kinds = [name for name in KINDS if _count(self.dit, name)] if kind is None else [kind]
        return max(map(self._step_bytes, kinds), key=lambda step: sum(step.values()))

    def _step_bytes(self, kind: str) -> dict[str, int]:
        """All weights are float32: the block itself; its linear layers with merged transforms; the same fake-quantized; and their
        gradient. Attention scores, 256 MB at a time, are not included. For a single-stream block of 8,192 tokens, the v5e
        compiler's count agrees within a quarter (tests/calibration/test_calibrate_deviceless.py, a slow test); a double-stream
        block has not been compiled."""
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
    """Number of parameters of one block, and of its linear layers without modulation and biases."""
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
    """Bfloat16 values per token that a step holds at its peak: during the gradient of a rematerialized block.

    With hidden size D and MLP size M, a single-stream block holds its input, target, output and the output's gradient, 4 D;
    the norm, plain and quantized, 2 D; the first layer's output and its gradient, 3 D + M each; queries and keys, normed and
    rotated, 4 D; attention's output, plain and quantized, 2 D; GELU, plain, rotated and quantized, 3 M. A double-stream block
    also has a second norm, 2 D, and the sum between attention and MLP with its gradient, 2 D.
    """
    single = 18 * config.hidden_size + 5 * config.mlp_size
    return single + (4 * config.hidden_size if kind == "double_blocks" else 0)
