"""Estimated device memory of calibration, stage by stage.

Temporaries are counted in widths: bfloat16 values of the hidden size for every token. They are the v5e compiler's for a double-stream
block of HunyuanVideo, which takes more than a single-stream one (tests/calibration/test_calibrate_deviceless.py, slow tests).
"""

from dataclasses import replace
from math import prod

from qsjax.budget.devices import Device
from qsjax.budget.models import PlannedModel
from qsjax.budget.passes import TUNE_BATCH
from qsjax.budget.size import Size
from qsjax.budget.stages import transformer_bytes
from qsjax.budget.weights import Weights, tensors
from qsjax.dit import DiTConfig
from qsjax.quant import Precision, Recipe
from qsjax.settings import DENSE

KINDS = ("double_blocks", "single_blocks")
OBSERVING, TRAINING, MEASURING, COMPARING, GRAMS, ROUNDING, TUNING = (
    "observing",
    "training",
    "measuring",
    "comparing layers",
    "Gram matrices",
    "rounding",
    "tuning",
)
WIDTHS = {OBSERVING: 13, TRAINING: 52, MEASURING: 28, COMPARING: 18, GRAMS: 12, TUNING: 42}
"""Stage -> widths of tokens that it holds at its peak; of tuning, for each moment of a step."""
_BFLOAT16, _FLOAT32 = 2, 4


def calibration_stages(
    model: PlannedModel, size: Size, memory: int, *, trained: bool = True, tuned: bool = True
) -> dict[str, dict[str, int]]:
    """Device memory in bytes by purpose, of each stage but sampling.

    Args:
        model: the model; the bytes of its packed weights are its recipe's.
        size: of a sample.
        memory: of the device: where tuning does not fit, the inputs of the blocks lie on the host.
        trained, tuned: whether blocks are trained, and the whole model tuned.
    """
    config = model.dit
    kind = next(name for name in KINDS if getattr(config, f"num_{name}"))
    block, linears = block_parameters(config, kind)
    width = config.hidden_size * size.tokens * _BFLOAT16
    found = {
        stage: {"block_weights": block * _BFLOAT16, "activations": WIDTHS[stage] * width}
        for stage in (OBSERVING, TRAINING, MEASURING, COMPARING, GRAMS)
        if stage != TRAINING or trained
    }
    if trained:
        for name in ("merged_weights", "fake_quantized_weights", "weight_gradients"):
            found[TRAINING][name] = linears * _FLOAT32
    for stage in (MEASURING, COMPARING, GRAMS):
        found[stage]["rounded_weights"] = block * _FLOAT32
    # Both streams of a double block are summed at once: what there is, and what a sample adds.
    streams = 2 if kind == "double_blocks" else 1
    gram = config.mlp_size**2 * _FLOAT32
    found[GRAMS]["gram_matrices"] = 2 * streams * gram
    found[ROUNDING] = {
        "block_weights": block * _BFLOAT16,
        "rounded_weights": block * _FLOAT32,
        "gram_matrices": streams * gram,
        # The matrix in another order, and its factor; weights and errors.
        "factor": 2 * gram,
        "errors": 2 * config.mlp_size * config.hidden_size * _FLOAT32,
    }
    if tuned:
        found[TUNING] = _tuning(model, size, memory)
    return found


def inputs_fit(model: PlannedModel, size: Size, memory: int) -> bool:
    """Whether tuning finds room on a device for the inputs of all blocks, which its backward pass wants again."""
    return "block_inputs" in _tuning(model, size, memory)


def _tuning(model: PlannedModel, size: Size, memory: int) -> dict[str, int]:
    config = model.dit
    weights = Weights.count(config, model.recipe, clipped=model.clipped)
    width = TUNE_BATCH * config.hidden_size * size.tokens * _BFLOAT16
    kind = next(name for name in KINDS if getattr(config, f"num_{name}"))
    parts = {
        "packed_weights": weights.total,
        # Scales and biases with their gradients and two moments of Adam.
        "tuned": 4 * (weights.by_group["scales"] + weights.by_group["biases"]),
        "a_block_widened": block_parameters(config, kind)[1] * _BFLOAT16,
        "activations": WIDTHS[TUNING] * width,
    }
    inputs = config.num_blocks * width
    if sum(parts.values()) + inputs <= memory:
        parts["block_inputs"] = inputs
    return parts


def block_parameters(config: DiTConfig, kind: str) -> tuple[int, int]:
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


def sampling_bytes_of_float(model: PlannedModel, size: Size, device: Device) -> int:
    """Bytes that sampling the captions takes: all weights of the float model, and a dense step."""
    floating = replace(model, recipe=Recipe.load("bf16"))
    weights = Weights.count(model.dit, floating.recipe)
    latents = model.vae.latent_shape(size.frames, size.height, size.width)
    plan = replace(model.settings, sparse=None, skip=None).plan()
    parts = transformer_bytes(
        floating, weights.total, size, latents, plan, [DENSE], device.peaks.backend
    )
    return sum(parts.values())
