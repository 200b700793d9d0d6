"""The report of calibration: for each method its passes, hours and disk; for each device what fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qsjax.budget.calibration import (
    SHARE_OF_PEAK,
    STEPS,
    CalibrationPlan,
)
from qsjax.budget.calibration_memory import TUNING, calibration_stages, sampling_bytes_of_float
from qsjax.budget.devices import Device
from qsjax.budget.models import PlannedModel
from qsjax.budget.passes import PLANNED, TUNE_BATCH, PlannedMethod
from qsjax.budget.weights import Weights
from qsjax.config import nearest
from qsjax.errors import InputError
from qsjax.settings.calibration import EPOCHS, SAMPLES

CALIBRATION_SIZE = (61, 320, 512)
"""Largest default size of calibration samples: frames, height and width. On one v5e everything fits with it, the inputs of all
blocks that tuning keeps included, and with twice as many tokens that does not."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """How a model is calibrated.

    Attributes:
        size: frames, height and width of the samples; None is the model's, at most `CALIBRATION_SIZE`.
        method: a key of `PLANNED`; None plans one that trains nothing, one that trains blocks, and the default.
        samples, epochs: number of samples, and passes over them.
        captions: videos that are sampled for them; None takes one for each sample.
        tune_steps: steps of tuning end to end, for a named method, or of those three for the one that tunes; None is the method's.
    """

    size: tuple[int, int, int] | None = None
    method: str | None = None
    samples: int = SAMPLES
    epochs: int = EPOCHS
    captions: int | None = None
    tune_steps: int | None = None

    def methods(self) -> list[PlannedMethod]:
        """The methods to plan.

        Raises:
            InputError: no such method, or a negative number of steps.
        """
        if self.method is not None and self.method not in PLANNED:
            raise InputError(
                f"no cost is known for method {self.method!r}; {nearest(self.method, PLANNED)}"
            )
        names = ("gptq", "msad", "tuned") if self.method is None else (self.method,)
        chosen = [PLANNED[name] for name in names]
        if self.tune_steps is None:
            return chosen
        if self.tune_steps < 0:
            raise InputError(f"tune steps {self.tune_steps}: must not be negative")
        return [
            replace(method, tune_steps=self.tune_steps)
            if self.method or method.tune_steps
            else method
            for method in chosen
        ]


DEFAULT = CalibrationOptions()


def calibration_report(
    model: PlannedModel, options: CalibrationOptions, devices: Sequence[Device], text_tokens: int
) -> dict[str, Any]:
    """Plan the calibration of a model.

    Args:
        model: the model.
        options: of calibration.
        devices: of one chip each.
        text_tokens: tokens of a prompt, padding included.

    Returns:
        Plain data: methods with operations by pass, bytes on disk and hours by device; device memory by stage.

    Raises:
        InputError: a value that the model cannot have.
    """
    pixels = options.size
    if pixels is None:
        usual = (model.settings.frames, model.settings.height, model.settings.width)
        pixels = min(usual, CALIBRATION_SIZE, key=lambda s: s[0] * s[1] * s[2])
    size = model.size(pixels, text_tokens)
    weights = Weights.count(model.dit, model.recipe, clipped=model.clipped)
    plans = [
        CalibrationPlan(
            dit=model.dit,
            size=size,
            method=method,
            samples=options.samples,
            captions=options.captions,
            steps=min(model.settings.steps, STEPS),
            epochs=options.epochs,
        )
        for method in options.methods()
    ]
    tuned = any(plan.method.tune_steps for plan in plans)
    trained = any(plan.method.learns for plan in plans)
    stages = {
        device.name: calibration_stages(
            model, size, device.memory_bytes, trained=trained, tuned=tuned
        )
        for device in devices
    }
    rows = []
    for device in devices:
        taken = {name: sum(parts.values()) for name, parts in stages[device.name].items()}
        largest = max(taken, key=taken.__getitem__)
        sampling = device.fits(sampling_bytes_of_float(model, size, device))
        rows.append(
            {
                **device.fits(taken[largest]),
                "largest_stage": largest,
                "sampling_bytes_estimate": sampling["bytes_estimate"],
                "sampling_fits_estimate": sampling["fits_estimate"],
            }
        )
        if tuned:
            on_device = "block_inputs" in stages[device.name][TUNING]
            rows[-1]["block_inputs"] = "device" if on_device else "host"
    first = plans[0]
    return {
        "size": size.data(),
        "samples": first.samples,
        "captions": first.videos,
        "steps": first.steps,
        "epochs": first.epochs,
        "blocks": model.dit.num_blocks,
        "steps_a_block": max(plan.steps_a_block for plan in plans),
        "tune_steps": max(plan.method.tune_steps for plan in plans),
        "tune_batch": TUNE_BATCH,
        "assumed_share_of_peak": SHARE_OF_PEAK,
        "methods": [
            {
                "method": plan.method.name,
                "evaluations": plan.evaluations,
                "flops": plan.flops,
                "flops_by_pass": plan.passes(),
                "disk_bytes": plan.disk(weights),
                "hours_estimate": {device.name: plan.hours(device) for device in devices},
            }
            for plan in plans
        ],
        "stages": stages[devices[0].name] if devices else {},
        "devices": rows,
    }
