"""Estimated seconds of a run on a TPU: the floors of its own size, recipe and steps, times what the compiler's estimate once added to them."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from pallas_kernels import targets
from pallas_kernels.targets import TARGETS, Target
from qsjax.budget.devices import Device
from qsjax.budget.models import PlannedModel
from qsjax.budget.overheads import BFLOAT16, Decoding, Overheads
from qsjax.budget.parts import BLOCKS, DOUBLE, ENDS, SINGLE, floors, pass_seconds
from qsjax.budget.size import Size
from qsjax.budget.steps import lists_on
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.sample import SamplingPlan
from qsjax.settings import DENSE, SPARSE
from qsjax.vae import Tiling, VAEConfig

Latents = tuple[int, int, int]
"""Frames, height and width of latents."""
TEXT_SECONDS, TEXT_TARGET = 0.046, "v5e"
"""351 tokens by both encoders in bfloat16, by libtpu 0.0.42; other chips are scaled by their peak."""


def run_time(
    model: PlannedModel,
    plan: SamplingPlan,
    size: Size,
    latents: Latents,
    device: Device,
) -> dict[str, Any]:
    """A run, and the same in bfloat16 with dense attention.

    Several chips share tokens, heads and tiles; what they send to each other is not counted. Nor are skipped steps, loading,
    compiling and the host's work.

    Args:
        model: the model with its recipe.
        plan: the sampling plan.
        size: of the video.
        latents: frames, height and width.
        device: to run on.

    Returns:
        Seconds: `step_seconds` of one step by kind, `steps_seconds` of all by kind, `text_seconds`, `decoding_seconds`, `seconds`;
        `bf16_dense_seconds` of the other run and `times_as_fast`; `libtpu`, whose estimates these go back to. Or `missing`, why
        there is nothing.
    """
    table = Overheads.known().get(device.target)
    if table is None:
        return {"missing": "no estimates are stored for such a chip"}
    if not table.fits(model.dit):
        return {
            "missing": f"estimates are stored for blocks of {table.hidden_size} channels and {table.heads} heads"
        }
    if unknown := sorted(set(plan.kinds) - set(table.kinds)):
        return {"missing": f"no estimate is stored for {', '.join(unknown)} steps"}
    density, cached = lists_on(device.peaks, model.dit, plan, latents, size.text_tokens)
    prompts = 2 if plan.uses_negative else 1
    on_host = plan.sparse is not None and plan.sparse.residual.place == "host"
    integers = model.recipe.blocks.activations != UNQUANTIZED
    step = partial(step_seconds, table, model, size, device)
    kinds = {
        kind: step(
            BFLOAT16 if kind == DENSE and not integers else kind,
            density=density if kind == SPARSE else 1.0,
            integers=integers,
            cached=0.0 if kind == DENSE else cached / model.dit.num_blocks / prompts,
            on_host=on_host,
        )
        for kind in dict.fromkeys(plan.kinds)
    }
    steps = {kind: prompts * plan.kinds.count(kind) * kinds[kind] for kind in kinds}
    rival = prompts * plan.steps * step(BFLOAT16, integers=False)
    text = text_seconds(device.peaks)
    decoding = decoding_seconds(table.decoding, model.vae, device, latents)
    seconds, other = (work + text + decoding for work in (sum(steps.values()), rival))
    return {
        "step_seconds": {kind: prompts * value for kind, value in kinds.items()},
        "steps_seconds": steps,
        "text_seconds": text,
        "decoding_seconds": decoding,
        "seconds": seconds,
        "bf16_dense_seconds": other,
        "times_as_fast": other / seconds,
        "libtpu": table.libtpu,
    }


def step_seconds(
    table: Overheads,
    model: PlannedModel,
    size: Size,
    device: Device,
    kind: str,
    *,
    density: float = 1.0,
    integers: bool = True,
    cached: float = 0.0,
    on_host: bool = False,
) -> float:
    """Of one step for one prompt; arguments as of `run_time` and `qsjax.budget.parts.floors`."""
    config, chips = model.dit, device.chips
    tokens = -(-size.video_tokens // chips) + size.text_tokens
    one_pass = pass_seconds(config, device.peaks, tokens)
    depth = {DOUBLE: config.num_double_blocks, SINGLE: config.num_single_blocks, ENDS: 1}
    total = 0.0
    for block in BLOCKS:
        least: Mapping[str, float] = {}
        if block != ENDS:
            least = floors(
                config, device.peaks, tokens=tokens, block=block, pairs=density * size.tokens**2 / chips,
                integers=integers, cached=cached / chips, on_host=on_host,
            )  # fmt: skip
        total += depth[block] * table.block_seconds(kind, block, least, one_pass)
    return total


def text_seconds(target: Target) -> float:
    """To encode a prompt."""
    return TEXT_SECONDS * TARGETS[TEXT_TARGET].bfloat16_flops / target.bfloat16_flops


def decoding_seconds(
    stored: Decoding, config: VAEConfig, device: Device, latents: Latents
) -> float:
    """To decode a video tile by tile, the time of a tile by its volume; chips take turns."""
    total = 0.0
    for tile, count in decoding_tiles(config, device.peaks, latents).items():
        total += -(-count // device.chips) * stored.seconds * _volume(tile) / _volume(stored.tile)
    return total


def decoding_tiles(config: VAEConfig, target: Target, latents: Latents) -> dict[Latents, int]:
    """The default tiles of a video: shape of the latents -> how many there are."""
    with targets.assumed(target):  # a TPU's tiles have one shape
        plan = Tiling().decode_plan(config)
    spans, cells = plan.frames(latents[0]), plan.cells(*latents[1:])
    return dict(
        Counter(
            (frames.stop - frames.start, rows.stop - rows.start, columns.stop - columns.start)
            for frames in spans
            for row in cells
            for rows, columns in row
        )
    )


def _volume(tile: Latents) -> int:
    frames, height, width = tile
    return frames * height * width
