"""What calibration computes, pass by pass, in forward passes of the float transformer.

The linear layers of the blocks and their attention are counted apart: a gradient costs each of them something else. Rotations
and the attention terms of a loss, up to 7 % of a pass, are not counted (tests/calibration/test_calibrate_cost.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from qsjax.budget.size import Size
from qsjax.dit import DiTConfig

TUNE_BATCH = 2
"""Moments of trajectories that a step of tuning end to end sees."""
FLOAT32 = 15
"""Operations in bfloat16 that take as long as one in float32: the ratio of an H100's peaks. A TPU makes one of six."""


@dataclass(frozen=True)
class Forwards:
    """Operations in forward passes, of the blocks' linear layers and of their attention."""

    linears: float | int
    attention: float | int

    def __add__(self, other: "Forwards") -> "Forwards":
        return Forwards(self.linears + other.linears, self.attention + other.attention)


FORWARD = Forwards(1, 1)
OBSERVE = Forwards(1, 1.5)
"""The float block, and its scores once more: how much attention every token receives."""
TEACHER = Forwards(1 / 4, 0)
"""Queries, keys and values of the float block, which attention terms compare: 3 of 12 D^2 a token. Its output is in a file."""
MEASURE = FORWARD + TEACHER
"""The fake-quantized block, compared with the float one."""
COMPARE = Forwards(3, 1)
"""The float block, and of its inputs every layer's product with exact and with rounded weights."""
TRAIN = Forwards(3, 3.5)
"""A training step of a block, without `TEACHER`. A linear layer's gradients, for its weights (whose clips and transforms learn) and
for its input, are two products of the size of its own; what is recomputed of it is only the rounding of its input. Attention has two
products, and five in its gradient: the scores again, and four."""
TUNE = Forwards(4, 4.5)
"""Tuning end to end, a moment: forward, the same again block by block, and the gradient: of a linear layer its product once more,
which the gradient of its scale needs, and one for its input, as integers do not change; of attention five products."""


class Feedback(NamedTuple):
    """Operations of rounding all blocks with error feedback.

    Attributes:
        forwards: of each sample, up to the layers whose inputs are summed.
        grams: of each sample, X^T X of all layers.
        factors: in float32: factorizations, and errors that are handed on.
    """

    forwards: Forwards
    grams: int
    factors: int


def feedback(config: DiTConfig, size: Size) -> Feedback:
    """Count rounding with error feedback: 2 K^2 operations a token for a Gram matrix, 2 K^3 for its factor and 2 K^2 N for errors.

    Layers are rounded one after the other, each on inputs that passed the rounded ones before; what lies behind is not run. In units
    of D^2 a token, a double block's layers are qkv 3, projection 1, and r each for the MLP's; a single block's first layer has 3 + r.
    """
    width, mlp, ratio = config.hidden_size, config.mlp_size, config.mlp_ratio
    doubles, singles, blocks = config.num_double_blocks, config.num_single_blocks, config.num_blocks
    whole = 4 + 2 * ratio
    # Before the projection qkv; before fc1 the projection, too; before fc2 all but fc2.
    double = Forwards((3 + 4 + (4 + ratio)) / whole, 3)
    single = Forwards((3 + ratio) / whole, 1)
    forwards = Forwards(
        (doubles * double.linears + singles * single.linears) / blocks,
        (doubles * double.attention + singles * single.attention) / blocks,
    )
    narrow, wide = 2 * width**2, 2 * mlp**2
    grams = doubles * (3 * narrow + wide) + singles * (2 * narrow + wide)
    # Inputs and outputs of the layers of one stream, of which a double block has two, and of a single block.
    stream = ((width, 3 * width), (width, width), (width, mlp), (mlp, width))
    single_layers = ((width, 3 * width + mlp), (width, width), (mlp, width))
    factors = sum(
        count * 2 * (inputs**3 + inputs**2 * outputs)
        for count, layers in ((2 * doubles, stream), (singles, single_layers))
        for inputs, outputs in layers
    )
    return Feedback(forwards, grams * size.tokens, factors)


@dataclass(frozen=True, kw_only=True)
class PlannedMethod:
    """What the cost of calibration depends on, of a method (`qsjax.calibration.Method`).

    Attributes:
        name: for tables.
        learns: whether blocks are trained.
        attention_terms: whether their loss compares attention.
        tune_steps: steps of tuning end to end; 0 has none.
    """

    name: str
    learns: bool
    attention_terms: bool = False
    tune_steps: int = 0


PLANNED: Mapping[str, PlannedMethod] = {
    method.name: method
    for method in (
        PlannedMethod(name="gptq", learns=False),
        PlannedMethod(name="ptq", learns=True),
        PlannedMethod(name="msad", learns=True, attention_terms=True),
        PlannedMethod(name="tuned", learns=True, tune_steps=150),
    )
}
"""Methods of calibration by name; all others cost as much as one of these. Rounding with error feedback is counted for all."""
