"""`qsjax.plan_memory`: the public planning function, which takes models, recipes and devices by name."""

import os
from typing import Any, Literal

from qsjax.budget.calibration_report import CalibrationOptions
from qsjax.budget.devices import Device
from qsjax.budget.models import PlannedModel
from qsjax.budget.report import DENSITY, make_report
from qsjax.budget.tables import text
from qsjax.quant.recipe import FLOAT
from qsjax.settings import (
    ModulationWeights,
    RecipeLike,
    SamplingRecipe,
    Skip,
    SparsePlan,
    choose_settings,
)
from qsjax.settings.calibration import EPOCHS, SAMPLES
from qsjax.settings.video import TEXT_TOKENS


class MemoryPlan(dict[str, Any]):
    """A plan as plain data, ready for JSON; printed, it is tables."""

    def __str__(self) -> str:
        return text(self)


def plan_memory(
    model: str | os.PathLike[str] = "hunyuan-13b",
    *,
    weights: str | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    recipe: RecipeLike | None = None,
    sparse: SparsePlan | Literal[False] | None = None,
    skip: Skip | Literal[False] | None = None,
    text_tokens: int = TEXT_TOKENS,
    text_storage: Literal["int8"] | None = None,
    modulation: ModulationWeights = "released",
    shard_weights: bool = False,
    density: float = DENSITY,
    calibration_size: tuple[int, int, int] | None = None,
    samples: int = SAMPLES,
    epochs: int = EPOCHS,
    captions: int | None = None,
    method: str | None = None,
    tune_steps: int | None = None,
    device: str | None = None,
    compile: bool = False,
) -> MemoryPlan:
    """Bytes, operations and hours of storing, sampling and calibrating a model, before anything is loaded.

    >>> print(qsjax.plan_memory(recipe="quantsparse-w4a8-d15", device="v5e-1", frames=61, height=480, width=832))

    Args:
        model: a preset of configs/models or its alias, "tiny" for the bundled model, or a checkpoint folder.
        weights: quantization recipe, a preset of configs/recipes or a TOML file; None is the one that the sampling recipe is for,
            else the checkpoint's own, else w4a8.
        frames, height, width, steps: size and steps of the video; None is the model's default.
        recipe: sparse attention and step skipping: a preset of configs/sampling, a TOML file, or its contents.
        sparse, skip: in place of the recipe's; False switches them off.
        text_tokens: tokens of the prompt, padding included.
        text_storage: storage of the text encoders; None is bfloat16.
        modulation: "released" drops the modulation weights from the device before the first step.
        shard_weights: shard the transformer's weights over the chips of a device; False replicates them.
        density: share of attention that is computed; ignored with sparse attention, which has its own.
        calibration_size: frames, height and width of calibration samples; None is the model's, at most 61x320x512.
        samples, epochs: number of calibration samples, and passes over them.
        captions: videos that are sampled for them; None is one for each sample.
        method: of calibration: "gptq", which trains nothing, "ptq" or "msad", which train block by block, without and with
            attention terms, or "tuned", which goes on end to end; None plans gptq, msad and tuned.
        tune_steps: steps of tuning end to end; None is the method's.
        device: preset of configs/devices; None is all of them.
        compile: also compile a step of each kind for the device, which need not be present, and report the compiler's count of
            bytes; takes minutes.

    Returns:
        Bytes are whole numbers; a GB is 10^9 of them.

    Raises:
        InputError: no such model, recipe or device, or a value that the model cannot have.
    """
    chosen = None if recipe is None else SamplingRecipe.of(recipe)
    if weights is None and chosen is not None:
        # A named recipe that fits any weights is planned in full precision.
        named = isinstance(recipe, (str, os.PathLike)) and not os.path.isdir(model)
        weights = chosen.weights or (FLOAT if named else None)
    planned = PlannedModel.find(os.fspath(model), weights)
    settings = choose_settings(
        planned.settings,
        None if planned.recipe.name == FLOAT else planned.recipe.name,
        recipe=chosen,
        sparse=sparse,
        skip=skip,
        frames=frames,
        height=height,
        width=width,
        steps=steps,
    )
    report = make_report(
        planned,
        settings,
        Device.known() if device is None else [Device.load(device)],
        text_tokens=text_tokens,
        density=density,
        calibration=CalibrationOptions(
            size=calibration_size,
            method=method,
            samples=samples,
            epochs=epochs,
            captions=captions,
            tune_steps=tune_steps,
        ),
        text_storage=text_storage,
        modulation=modulation,
        shard_weights=shard_weights,
        compiled=compile,
    )
    return MemoryPlan(report)
