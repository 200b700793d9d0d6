"""`qsjax.calibrate`: make a quantized checkpoint from a float one, as the verb `qsjax calibrate` does."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from qsjax.budget import PlannedModel
from qsjax.budget.calibration import STEPS, CalibrationPlan
from qsjax.budget.calibration_memory import inputs_fit
from qsjax.budget.calibration_report import CALIBRATION_SIZE
from qsjax.budget.passes import PlannedMethod
from qsjax.budget.weights import Weights
from qsjax.calibration import DEFAULT, Gathered, Method, gather
from qsjax.calibration import method as method_named
from qsjax.calibration.checkpoint import calibrate_checkpoint
from qsjax.calibration.report import (
    as_text,
    figure_class,
    plot,
    summary,
    tuning_summary,
    write_page,
)
from qsjax.checkpoint import Manifest
from qsjax.config import preset
from qsjax.dit.stack import Kept
from qsjax.errors import InputError
from qsjax.models import device_room
from qsjax.pipeline import Pipeline
from qsjax.quant import Recipe
from qsjax.settings.calibration import SAMPLES
from qsjax.settings.video import TEXT_TOKENS
from qsjax.tiny.streams import CALIBRATION, held_out
from qsjax.untrusted import read_text
from qsjax.video import check_writable

TINY = "tiny"
MOST = {**dict(zip(("frames", "height", "width"), CALIBRATION_SIZE, strict=True)), "steps": STEPS}
"""The largest video that is sampled by default; `qsjax plan` says what it costs."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The result of a calibration; printed, it is a table.

    Attributes:
        checkpoint: folder of the quantized checkpoint.
        blocks: report of every block: errors before and after, losses, seconds.
        files: other files that were written.
        losses: of every step of tuning end to end, ||v_q - v||^2 / ||v||^2; none where there was no tuning.
    """

    checkpoint: Path
    blocks: Sequence[dict[str, Any]]
    files: tuple[Path, ...] = ()
    losses: Sequence[float] = ()

    @property
    def summary(self) -> dict[str, Any]:
        """Means over the blocks, and velocity errors before and after tuning."""
        return summary(self.blocks) | tuning_summary(self.losses)

    def __str__(self) -> str:
        return as_text(self.blocks, self.losses)


def calibrate(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: str | Recipe = "w4a8",
    method: str | Method = DEFAULT,
    rounding: str | None = None,
    tune_steps: int | None = None,
    captions: Sequence[str] | os.PathLike[str] | None = None,
    samples: int = SAMPLES,
    epochs: int | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    devices: int = 1,
    plot_to: str | os.PathLike[str] | None = None,
    report_to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    verify: bool = True,
) -> Calibrated:
    """Write a quantized checkpoint, block by block. After an interruption, the same call resumes where it stopped; what the same call
    has finished is not made again.

    >>> print(qsjax.calibrate("tiny", "checkpoint-w4a8", samples=8, epochs=4))

    Args:
        model: float checkpoint, or "tiny" for the bundled model.
        out: checkpoint folder to write.
        weights: quantization recipe: a preset of configs/recipes, a TOML file, or a `Recipe`.
        method: a key of `qsjax.calibration.METHODS`, or a `Method`.
        rounding: of weights, once the transforms are known: "nearest", or "gptq" with error feedback; None is the method's.
        tune_steps: steps of tuning end to end, after all blocks; 0 leaves it out, None is the method's default.
        captions: texts, or a text file with one caption per line; None takes configs/captions, or for the bundled model captions
            of its own held-out scenes.
        samples: number of training samples: the model's inputs at so many sampling steps.
        epochs: passes over the samples; None is the method's default.
        frames, height, width, steps: size and steps of the sampled videos; None is the checkpoint's, at most `MOST`.
        seed: seed of the noise and of the order of samples.
        dtype: dtype of activations; None is bfloat16 on TPU and GPU, float32 on CPU.
        devices: number of devices that share a sampled video's tokens, and the moments of a step of tuning.
        plot_to: PNG file for loss curves and errors; needs matplotlib.
        report_to: HTML file for a page with the table and charts; needs nothing else.
        overwrite: replace an existing checkpoint, once the new one is complete.
        progress: show progress bars.
        verify: compare the model's weights with their sha256 in the manifest when they are read.

    Raises:
        InputError: no such model, recipe or method, no captions, a checkpoint that is already quantized, or a folder that cannot
            be written.
        CheckpointError: the model is not a checkpoint, or a damaged one.
    """
    if samples < 1:
        raise InputError(f"samples={samples}: at least 1 is needed")
    chosen = method_named(method) if isinstance(method, str) else method
    if epochs is not None:
        chosen = replace(chosen, epochs=epochs)
    if rounding is not None:
        chosen = replace(chosen, rounding=rounding)
    if tune_steps is not None:
        chosen = replace(chosen, tune_steps=tune_steps)
    recipe = Recipe.load(weights) if isinstance(weights, str) else weights
    texts = _captions(captions, tiny=model == TINY, samples=samples)
    options: dict[str, Any] = {"dtype": dtype, "progress": progress, "devices": devices}
    options["verify"] = verify
    pipeline = Pipeline.tiny(**options) if model == TINY else Pipeline.from_checkpoint(model, **options)  # fmt: skip
    requested = {"frames": frames, "height": height, "width": width, "steps": steps}
    sizes: dict[str, Any] = {
        name: min(getattr(pipeline.settings, name), MOST[name]) if size is None else size
        for name, size in requested.items()
    }
    pipeline.resolve(**sizes)
    if plot_to is not None:
        figure_class(Path(plot_to))
        check_writable(Path(plot_to), overwrite=True)
    if report_to is not None:
        check_writable(Path(report_to), overwrite=True)
    video = (sizes["frames"], sizes["height"], sizes["width"])
    planned = replace(PlannedModel.of_checkpoint(Manifest.read(pipeline.directory)), recipe=recipe)

    def sampled(folder: Path) -> Gathered:
        found = gather(
            pipeline,
            texts,
            samples=samples,
            whole=chosen.tune_steps > 0,
            seed=seed,
            folder=folder,
            progress=progress,
            **sizes,
        )
        # What follows reads one block at a time, or another model.
        pipeline.release()
        return found

    manifest, blocks = calibrate_checkpoint(
        pipeline.directory,
        Path(out),
        sampled,
        recipe,
        chosen,
        described={"captions": texts[:samples], "samples": samples, **sizes},
        seed=seed,
        dtype=pipeline.dtype,
        mesh=pipeline.mesh,
        kept=_kept(planned, video),
        room=_room(
            planned, chosen, video, steps=sizes["steps"], samples=samples, captions=len(texts)
        ),
        overwrite=overwrite,
        progress=progress,
        verify=verify,
    )
    losses = (manifest.component("dit").calibration or {}).get("tuning", {}).get("loss", ())
    files = () if plot_to is None else (plot(blocks, Path(plot_to), losses),)
    if report_to is not None:
        title = f"{manifest.directory.name}: calibration"
        files += (write_page(blocks, Path(report_to), losses, title=title),)
    return Calibrated(checkpoint=manifest.directory, blocks=blocks, files=files, losses=losses)


def _kept(model: PlannedModel, video: tuple[int, int, int]) -> Kept:
    """Where tuning keeps the inputs of the blocks: on the host if the plan says that the device has no room for them."""
    room = device_room()
    if room is None:
        return "inputs"
    size = model.size(video, TEXT_TOKENS)
    return "inputs" if inputs_fit(model, size, room) else "inputs on the host"


def _room(
    model: PlannedModel,
    method: Method,
    video: tuple[int, int, int],
    *,
    steps: int,
    samples: int,
    captions: int,
) -> int:
    """Bytes on the disk, about: the new transformer, and what is kept until the end."""
    plan = CalibrationPlan(
        dit=model.dit,
        size=model.size(video, TEXT_TOKENS),
        method=PlannedMethod(name=method.name, learns=method.learns, tune_steps=method.tune_steps),
        samples=samples,
        captions=captions,
        steps=steps,
    )
    weights = Weights.count(model.dit, model.recipe, clipped=method.clipped)
    return weights.total + sum(plan.disk(weights).values())


def _captions(
    captions: Sequence[str] | os.PathLike[str] | None, *, tiny: bool, samples: int
) -> list[str]:
    if captions is None:
        if tiny:
            return [scene.caption for scene in held_out(CALIBRATION, samples)]
        return list(preset("captions", "general")["captions"])
    if isinstance(captions, os.PathLike):
        captions = read_text(captions).splitlines()
    elif isinstance(captions, str):
        raise InputError(f"captions {captions!r}: give a list of texts, or the path of a file")
    texts = [text.strip() for text in captions if text.strip()]
    if not texts:
        raise InputError("there is no caption; give at least one, in a file one a line")
    return texts
