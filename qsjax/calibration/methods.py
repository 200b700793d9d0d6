"""Ways to quantize a model, as data: MSAD, what it is compared with, and its ablation."""

from dataclasses import dataclass, replace

from qsjax.config import nearest
from qsjax.errors import InputError
from qsjax.quant.rotation import KINDS
from qsjax.settings.calibration import EPOCHS

ROWS = ("salient", "random", "all")
ROUNDING = ("nearest", "gptq")
INPUTS = ("fp", "quantized", "mixed")


@dataclass(frozen=True, kw_only=True)
class Method:
    """Where transforms start, what of them is learned, and against which loss.

    Attributes:
        name: for people.
        smoothing: start from SmoothQuant's channel scales; False leaves them out.
        alpha: of SmoothQuant: how much of the difficulty moves to the weights.
        rotation: use the recipe's rotation, from the Hadamard on; False leaves it out.
        rotation_kind: another kind than the recipe's, where that has a rotation; None takes the recipe's.
        learn_smoothing, learn_rotation, learn_clips: train them, block by block.
        global_weight: of the distance between attention maps of pooled queries and keys.
        local_weight: of the distance between attention rows.
        rows: which rows: the keys that most attention goes to, random ones, or all of them.
        auto: weights are relative: every term is divided by its mean over the samples before the first step. False takes them
            as they are, as the paper's 1 and 100 for HunyuanVideo.
        rank: of a learned correction of the weights before they are rounded, which costs nothing later, and of whether there is
            one of rank 1 in floating point beside the layer; 0 has neither (Q-VDiT's token-aware estimator).
        frame_weight: of the divergence between similarities of frames in the block's output (Q-VDiT's temporal term).
        rounding: of weights, when the transforms are known: each to its nearest integer, or with error feedback from column to
            column, as GPTQ; activations are rounded to nearest always.
        search_clips: try clips for the weights of every output channel, where they are not learned; with error feedback only,
            which knows the inputs that the clips are weighed by.
        tune_steps: steps of tuning all blocks together, when all are rounded: channel scales, biases and activation clips, towards
            the float model's velocities on the trajectories of calibration; 0 leaves it out.
        tune_early: share of its moments that are of the first tenth of the sampling steps, which decide most about the video;
            0 takes all steps alike.
        tune_learning_rate: Adam's, of that.
        inputs: what a block sees while it is trained: float activations, those of the quantized blocks before it,
            or the two in turns.
        epochs: passes over the samples.
        learning_rate: AdamW's, of smoothing and rotation.
        clip_learning_rate: of clips.
        window: tokens pooled for the global term; 0 takes 128, or less where there are few (16 of 576).
        local_rows: attention rows of the local term; 0 takes 256, or less where there are few (64 of 576).
    """

    name: str
    smoothing: bool = True
    alpha: float = 0.5
    rotation: bool = True
    rotation_kind: str | None = None
    learn_smoothing: bool = False
    learn_rotation: bool = False
    learn_clips: bool = False
    global_weight: float = 0.0
    local_weight: float = 0.0
    rows: str = "salient"
    auto: bool = True
    rank: int = 0
    frame_weight: float = 0.0
    rounding: str = "nearest"
    search_clips: bool = False
    tune_steps: int = 0
    tune_early: float = 0.0
    tune_learning_rate: float = 1e-3
    inputs: str = "fp"
    epochs: int = EPOCHS
    learning_rate: float = 5e-3
    clip_learning_rate: float = 5e-2
    window: int = 0
    local_rows: int = 0

    def __post_init__(self) -> None:
        for value, known, name in (
            (self.rows, ROWS, "rows"),
            (self.inputs, INPUTS, "inputs"),
            (self.rounding, ROUNDING, "rounding"),
            (self.rotation_kind or "none", KINDS, "rotation_kind"),
        ):
            if value not in known:
                raise InputError(
                    f"method {self.name}: no {name} {value!r}; {nearest(value, known)}"
                )
        if self.epochs < 1 or min(self.window, self.local_rows, self.tune_steps) < 0:
            raise InputError(
                f"method {self.name}: epochs={self.epochs} must be 1 or more,"
                f" window={self.window}, local_rows={self.local_rows} and tune_steps={self.tune_steps} not negative"
            )

        if not 0 <= self.tune_early < 1:
            raise InputError(
                f"method {self.name}: tune_early={self.tune_early} must be a share from 0 to less than 1"
            )

    @property
    def learns(self) -> bool:
        """Whether blocks are trained at all."""
        return self.learn_smoothing or self.learn_rotation or self.learn_clips or self.rank > 0

    @property
    def clipped(self) -> bool:
        """Whether activations have a clip that is found, block by block or end to end."""
        return self.learn_clips or self.tune_steps > 0

    @property
    def follows(self) -> bool:
        """Whether it needs the tokens of the quantized model, beside those of the float one."""
        return self.inputs != "fp" or self.rounding != "nearest"

    def sized(self, video: int) -> "Method":
        """The method with its window and its number of rows for this many video tokens."""
        rows = video if self.rows == "all" else self.local_rows or max(16, min(256, video // 9))
        return replace(
            self,
            window=self.window or max(4, min(128, video // 36)),
            local_rows=min(rows, video),
        )


_PTQ = Method(name="ptq", learn_smoothing=True, learn_rotation=True, learn_clips=True)
_MSAD = replace(_PTQ, name="msad", global_weight=1.0, local_weight=1.0, inputs="mixed")
_TUNED = replace(
    _PTQ, name="tuned", inputs="mixed", rounding="gptq", tune_steps=150, tune_early=0.5
)
DEFAULT = "tuned"
"""The method of `qsjax calibrate`: the best that was measured (docs/quantization.md)."""

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(name="rtn", smoothing=False, rotation=False),
        Method(name="smoothquant", rotation=False),
        Method(name="quarot", smoothing=False, rotation_kind="hadamard"),
        Method(name="vidit", alpha=0.25),
        Method(name="gptq", rounding="gptq", search_clips=True),
        Method(
            name="qvdit",
            smoothing=False,
            rotation=False,
            learn_clips=True,
            rank=32,
            frame_weight=1.0,
        ),
        _PTQ,
        _TUNED,
        _MSAD,
        replace(_MSAD, name="global", local_weight=0.0),
        replace(_MSAD, name="local", global_weight=0.0),
        replace(_MSAD, name="random-rows", rows="random"),
        replace(_MSAD, name="full-attention", rows="all", global_weight=0.0),
    )
}
"""Round-to-nearest; SmoothQuant; QuaRot's rotation, a Hadamard transform of all channels; static smoothing and rotation as
ViDiT-Q; the same with error feedback and searched clips (GPTQ), without training; low-rank corrections and similar frames as
Q-VDiT, with symmetric integers and block by block, where the original trains the whole network; learned transforms without a
look at attention; these with error feedback and tuned end to end; QuantSparse's MSAD, on float inputs and those of quantized
blocks in turns; and what remains of MSAD without one of its parts."""


def method(name: str) -> Method:
    """A method by name.

    Raises:
        InputError: no such method; the nearest is named.
    """
    if name not in METHODS:
        raise InputError(f"no method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]
