"""A run of all steps from the estimates of one step of each kind, and the report of `qsjax bench step`."""

from dataclasses import replace
from math import prod
from typing import Any

from pallas_kernels import deviceless, targets
from pallas_kernels.estimate import NoEstimateError, estimable
from pallas_kernels.targets import TARGETS, Target
from qsjax.bench.step import measure
from qsjax.bench.step_subject import Subject
from qsjax.bench.vae_tile import estimated
from qsjax.budget.models import PlannedModel
from qsjax.budget.overheads import BFLOAT16, Decoding, Overheads
from qsjax.budget.parts import pass_seconds
from qsjax.budget.run_time import TEXT_TARGET, decoding_seconds, decoding_tiles, text_seconds
from qsjax.budget.size import Size
from qsjax.budget.steps import steps_by_kind
from qsjax.budget.weights import Weights
from qsjax.config import to_mapping
from qsjax.errors import InputError
from qsjax.quant import Recipe
from qsjax.quant.recipe import FLOAT
from qsjax.settings import SamplingRecipe, choose_settings
from qsjax.versions import KERNELS, versions

LIBTPU = "0.0.52"
"""The version whose estimates docs/benchmarks.md has."""
_TIMEOUT = 1800.0


def bench(
    target: str,
    *,
    recipe: SamplingRecipe | None = None,
    weights: str | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    vae: bool = False,
) -> dict[str, Any]:
    """Estimate a run of HunyuanVideo-13B on one TPU that need not be here; minutes.

    Args:
        target: name of a TPU in `pallas_kernels.targets.TARGETS`.
        recipe: sparse attention; None is dense.
        weights: quantization recipe; None is what the sampling recipe is for, else w4a8.
        frames, height, width, steps: of the video; None is the model's default.
        vae: also compile a tile of the autoencoder; else its stored estimate counts.

    Returns:
        `kinds`: kind of step -> `qsjax.bench.step.measure`'s rows with floors; `run` and `rival`: seconds of all steps by
        kind, of the other stages, in all; and `ratio`, how many times faster the run is than the rival.

    Raises:
        InputError: a target that cannot be estimated, a size that the model cannot make, a recipe for other weights.
    """
    chip = chosen_target(target)
    if weights is None and recipe is not None:
        weights = recipe.weights
    model = PlannedModel.find("hunyuan-13b", weights)
    quantized = None if model.recipe.name == FLOAT else model.recipe.name
    settings = choose_settings(
        model.settings, quantized, recipe=recipe, skip=False, frames=frames, height=height,
        width=width, steps=steps,
    )  # fmt: skip
    size = Size.of(
        model.dit, model.vae, frames=settings.frames, height=settings.height, width=settings.width
    )
    subject = Subject(model=model, plan=settings.plan(), target=chip, size=size)
    with targets.assumed(chip):  # lists of blocks are those of the chip
        kinds = measure(subject)
        for kind, floor in _step_floors(subject).items():
            kinds[kind]["floor_seconds"] = floor
    decoding = None
    if vae:
        tiles = decoding_tiles(model.vae, chip, subject.latents)
        try:
            decoding = estimated(model.vae, chip, max(tiles, key=prod), _TIMEOUT)
        except NoEstimateError as error:
            raise InputError(
                f"the autoencoder has no estimate: {error}; leave `vae` out"
            ) from error
    return report(subject, kinds, decoding)


def chosen_target(name: str) -> Target:
    """A TPU whose compiler estimates cycles.

    Raises:
        InputError: there is no such target, or its compiler is not installed.
    """
    able = [one for one in TARGETS.values() if estimable(one)]
    target = next((one for one in able if one.name == name), None)
    if target is None:
        known = ", ".join(one.name for one in able)
        raise InputError(f"`target={name!r}`: only {known} can be estimated; choose one of them")
    if reason := deviceless.missing(target):
        raise InputError(f"`target={name!r}`: the compiler that estimates is missing; {reason}")
    return target


def report(
    subject: Subject, kinds: dict[str, Any], decoding: Decoding | None = None
) -> dict[str, Any]:
    """Everything as plain data; `run`, `rival` and `ratio` only where all their steps have an estimate."""
    size, plan = subject.size, subject.plan
    result: dict[str, Any] = {
        "target": subject.target.name,
        "method": "estimated",
        "size": {
            "frames": size.frames,
            "height": size.height,
            "width": size.width,
            "tokens": size.tokens,
        },
        "weights": subject.model.recipe.name,
        "mask": None if plan.sparse is None else plan.sparse.sparsity.mask,
        "versions": versions(KERNELS),
        "wanted_libtpu": LIBTPU,
        "layers": {
            "double": subject.model.dit.num_double_blocks,
            "single": subject.model.dit.num_single_blocks,
        },
        "executed_density": subject.lists[0],
        "cache_bytes": subject.lists[1],
        "hidden_size": subject.model.dit.hidden_size,
        "heads": subject.model.dit.num_heads,
        "pass_seconds": pass_seconds(subject.model.dit, subject.target, size.tokens),
        "kinds": kinds,
    }
    stages = _stages(subject, decoding)
    result["decoding"] = stages["tile"]
    result["run"] = _run({kind: kinds[kind] for kind in subject.kinds}, stages)
    result["rival"] = _run({BFLOAT16: kinds[BFLOAT16]}, stages)
    if result["run"] and result["rival"]:
        steps = [sum(part["steps"].values()) for part in (result["rival"], result["run"])]
        result["ratio_of_steps"] = steps[0] / steps[1]
        result["ratio"] = result["rival"]["seconds"] / result["run"]["seconds"]
    return result


def _run(kinds: dict[str, Any], stages: dict[str, Any]) -> dict[str, Any] | None:
    if any("failure" in row for row in kinds.values()):
        return None
    steps = {kind: row["steps"] * row["seconds"] for kind, row in kinds.items()}
    compiling = sum(row["cpu_seconds"] for row in kinds.values())
    return {
        "steps": steps,
        "steps_floor": sum(row["steps"] * row["floor_seconds"] for row in kinds.values()),
        "text": stages["text"],
        "decoding": stages["decoding"],
        "decoding_from": stages["from"],
        "seconds": sum(steps.values()) + stages["text"] + stages["decoding"],
        "steps_cpu_seconds": compiling,
        "decoding_cpu_seconds": stages["decoding_cpu_seconds"],
    }


def _stages(subject: Subject, decoding: Decoding | None) -> dict[str, Any]:
    """Text encoding and decoding: stored estimates, scaled to the size and, of a TPU that has none, by its peak."""
    target, origin = subject.target, "estimated here"
    if decoding is None:
        known = Overheads.known()
        name = target.name if target.name in known else TEXT_TARGET
        decoding = known[name].decoding
        if name != target.name:
            slower = TARGETS[name].bfloat16_flops / target.bfloat16_flops
            decoding = replace(
                decoding,
                seconds=slower * decoding.seconds,
                libtpu=f"{decoding.libtpu}, {name}, scaled by the peak",
            )
        origin = f"stored, libtpu {decoding.libtpu}"
    chip = subject.device
    seconds = decoding_seconds(decoding, subject.model.vae, chip, subject.latents)
    return {
        "text": text_seconds(target),
        "decoding": seconds,
        "decoding_cpu_seconds": decoding.cpu_seconds,
        "from": origin,
        "tile": to_mapping(decoding),
    }


def _step_floors(subject: Subject) -> dict[str, float]:
    """Seconds of a step of each kind at the peaks, as `qsjax plan` has them."""
    chip = subject.device
    floating = replace(subject.model, recipe=Recipe.load(FLOAT))
    found = {}
    for model, plan in ((subject.model, subject.plan), (floating, subject.plan.dense)):
        rows = steps_by_kind(
            model,
            Weights.count(model.dit, model.recipe),
            subject.size,
            subject.latents,
            plan,
            [chip],
        )
        names = rows if plan is subject.plan else {BFLOAT16: rows["dense"]}
        found |= {
            kind: row["floor_seconds"][chip.name]
            for kind, row in (rows if plan is subject.plan else names).items()
        }
    return found
