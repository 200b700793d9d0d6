"""A plan's report as plain data, which `qsjax plan --json` prints."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from qsjax.budget.calibration_report import DEFAULT, CalibrationOptions, calibration_report
from qsjax.budget.compiled import compile_steps
from qsjax.budget.devices import Device
from qsjax.budget.fit import advice
from qsjax.budget.flops import StepFlops
from qsjax.budget.models import PlannedModel
from qsjax.budget.run import Run
from qsjax.budget.run_time import run_time
from qsjax.budget.stages import transformer_bytes
from qsjax.budget.steps import steps_by_kind
from qsjax.budget.weights import Weights, modulation_table_bytes
from qsjax.errors import InputError
from qsjax.quant import Recipe
from qsjax.settings import SPARSE, ModulationWeights, Settings
from qsjax.settings.video import TEXT_TOKENS

DENSITY = 0.15
"""Density of attention in QuantSparse's main setting."""


def make_report(
    model: PlannedModel,
    settings: Settings,
    devices: Sequence[Device],
    *,
    text_tokens: int = TEXT_TOKENS,
    density: float = DENSITY,
    calibration: CalibrationOptions = DEFAULT,
    text_storage: str | None = None,
    modulation: ModulationWeights = "released",
    shard_weights: bool = False,
    compiled: bool = False,
) -> dict[str, Any]:
    """Plan storage, sampling and calibration of a model. Bytes are whole numbers, a GB is 10^9 of them.

    Args:
        model: the model to plan.
        settings: the run's settings. With sparse attention, the report's density is what it executes; with step skipping, times
            and operations are those of computed steps.
        devices: the devices to plan for.
        text_tokens: tokens of the prompt, padding included.
        density: share of the blocks' attention that is computed, the same in all steps; ignored with sparse attention.
        calibration: how the model is calibrated.
        text_storage: storage of the text encoders, "int8" or None for bfloat16.
        modulation: "released" drops the modulation weights from the device before the first step.
        shard_weights: shard the weights of the blocks over several chips; False replicates them.
        compiled: compile a step of each kind for the device, minutes each, and report the compiler's count of bytes.

    Raises:
        InputError: a value that the model cannot have, several devices to compile for, or no compiler.
    """
    # True guidance evaluates the model for two prompts.
    evaluations = settings.steps * (2 if settings.plan().uses_negative else 1)
    own = (settings.frames, settings.height, settings.width)
    size = model.size(own, text_tokens)
    latents = model.vae.latent_shape(*own)
    weights = Weights.count(model.dit, model.recipe, clipped=model.clipped)
    run = Run(
        model=model,
        weights=weights,
        settings=settings,
        text_tokens=text_tokens,
        text_storage=text_storage,
        modulation=modulation,
        shard_weights=shard_weights,
    )
    kinds = steps_by_kind(model, weights, size, latents, settings.plan(), devices)
    density = kinds[SPARSE]["executed_density"] if SPARSE in kinds else density
    report = {
        "model": model.name,
        "recipe": model.recipe.name,
        **_storage(model, weights, evaluations),
        "size": size.data(),
        "steps": settings.steps,
        "evaluations": evaluations,
        "density": density,
        **_operations(StepFlops.count(model.dit, size), density, evaluations),
        "sampling": _sampling(run, devices),
        "calibration": calibration_report(
            model, calibration, [device for device in devices if device.chips == 1], text_tokens
        ),
        "steps_by_kind": kinds,
        "run_time_estimate": {
            device.name: run_time(model, settings.plan(), size, latents, device)
            for device in devices
        },
    }
    if compiled:
        report["compiled"] = _compiled(run, devices)
    return report


def _compiled(run: Run, devices: Sequence[Device]) -> dict[str, Any]:
    """The compiler's count for each kind of step, together with our estimate."""
    if len(devices) != 1:
        names = ", ".join(device.name for device in devices)
        raise InputError(f"compiling is for one device; name it with `device`: {names}")
    target, model = devices[0].peaks, run.model
    run = replace(run, backend=target.backend, chips=devices[0].chips)
    plan, latents = run.settings.plan(), run.latents
    try:
        made = compile_steps(
            model.dit,
            model.recipe,
            plan,
            target,
            latents=latents,
            text_tokens=run.text_tokens,
            clipped=model.clipped,
            chips=run.chips,
            shard_weights=run.shard_weights and run.chips > 1,
        )
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from error
    estimate = partial(
        transformer_bytes,
        *(model, run.resident, run.size, latents, plan),
        backend=run.backend,
        chips=run.chips,
    )
    return {
        kind: {**step._asdict(), "peak_bytes_estimate": sum(estimate([kind]).values())}
        for kind, step in made.items()
    }


def _storage(model: PlannedModel, weights: Weights, evaluations: int) -> dict[str, Any]:
    floating = Weights.count(model.dit, Recipe.load("bf16")).total
    return {
        "weight_bytes": weights.total,
        "bf16_bytes": floating,
        "times_smaller": round(floating / weights.total, 2),
        "weight_bytes_by_group": dict(weights.by_group),
        "weight_bytes_by_part": dict(weights.by_part),
        "resident_bytes": weights.resident,
        "modulation_table_bytes": modulation_table_bytes(model.dit, evaluations),
    }


def _operations(step: StepFlops, density: float, evaluations: int) -> dict[str, Any]:
    per_step = {
        "linears": step.linears,
        "attention": step.attention,
        "attention_at_density": step.attention_at(density),
        "rest": step.rest,
        "total": step.total(),
        "total_at_density": step.total(density),
    }
    return {
        "flops_per_step": per_step,
        "flops_all_steps": {name: evaluations * count for name, count in per_step.items()},
        "linear_share": round(step.linear_share(), 4),
        "linear_share_at_density": round(step.linear_share(density), 4),
    }


def _sampling(run: Run, devices: Sequence[Device]) -> dict[str, Any]:
    """The stages as the first device's compiler lays them out, and a row for each device with its own layout."""
    rows = []
    for device in devices:
        own = replace(run, backend=device.peaks.backend, chips=device.chips)
        largest = own.largest()
        row = device.fits(largest.total)
        enough = row["fits_estimate"]
        rows.append(
            row
            | {
                "largest_stage": largest.name,
                "fits_with": [] if enough else advice(own, device.memory_bytes),
            }
        )
    first = replace(run, backend=devices[0].peaks.backend, chips=devices[0].chips)
    return {"stages": {stage.name: stage.parts for stage in first.stages()}, "devices": rows}
