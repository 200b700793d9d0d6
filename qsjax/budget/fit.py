"""Check whether a run fits a device, and find changes that would make it fit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qsjax.budget.run import Run
from qsjax.errors import InputError
from qsjax.vae import Tiling

SIZES = ((129, 720, 1280), (61, 720, 1280), (61, 544, 960), (61, 480, 832), (33, 480, 832), (33, 320, 512))  # fmt: skip
"""Sizes proposed in place of a video that does not fit: frames, height, width, largest first."""
DOUBT = 0.1
"""Assumed error of the estimate: a run whose estimate exceeds the device's memory by less is tried."""


def require_room(run: Run, room: int, *, where: str) -> None:
    """Check that a run can fit, before anything is loaded.

    Args:
        run: the requested run.
        room: memory of the device in bytes.
        where: name of the device.

    Raises:
        InputError: a stage exceeds the device's memory by more than `DOUBT`; the message lists changes that would make it fit.
    """
    largest = run.largest()
    if largest.total * (1 - DOUBT) <= room:
        return
    parts = ", ".join(f"{k.replace('_', ' ')} {v / 1e9:.1f} GB" for k, v in largest.parts.items())
    changes = advice(run, room)
    raise InputError(
        f"this run does not fit {where} with {room / 1e9:.1f} GB: the stage of the {largest.name} takes about"
        f" {largest.total / 1e9:.1f} GB ({parts}); "
        + (
            f"it would with {'; or '.join(changes)}"
            if changes
            else "no single change would make it fit"
        )
    )


def advice(run: Run, room: int) -> list[str]:
    """Single changes that make every stage fit; as a smaller video, the largest that fits."""
    changes = [text for text, changed in _changes(run) if changed.largest().total <= room]
    # The run's own video does not fit, so any that fits is smaller.
    if (video := largest_video(run, room)) is not None:
        frames, height, width = video
        changes.append(f"a smaller video (`{frames=}, {height=}, {width=}`)")
    return changes


def largest_video(run: Run, room: int) -> tuple[int, int, int] | None:
    """Frames, height and width of the largest of `SIZES` that fits, everything else as in `run`."""
    for frames, height, width in SIZES:
        size = replace(run.settings, frames=frames, height=height, width=width)
        if replace(run, settings=size).largest().total <= room:
            return frames, height, width
    return None


def _changes(run: Run) -> Iterator[tuple[str, Run]]:
    """Changes that save memory, each as its text and the changed run."""
    settings, sparse = run.settings, run.settings.sparse
    if run.encodes and (run.text_storage or run.model.text_storage) is None:
        yield "`text_storage='int8'`", replace(run, text_storage="int8")
    if run.encodes:
        text = "a prompt encoded elsewhere (`save_prompts`, `load_prompts`)"
        yield text, replace(run, encodes=False)
    if run.modulation == "resident":
        yield "`modulation='released'`", replace(run, modulation="released")
    if run.chips > 1 and not run.shard_weights:
        yield "`shard_weights=True`", replace(run, shard_weights=True)
    if sparse is not None and sparse.residual.rule.order:
        for text, changes in _CACHES.items():
            residual = replace(sparse.residual, **changes)
            if residual != sparse.residual and (run.backend != "gpu" or residual.place == "device"):
                changed = replace(settings, sparse=replace(sparse, residual=residual))
                yield text, replace(run, settings=changed)
    small = Tiling.diffusers()
    if run.tiling != small:
        text = "smaller tiles of the autoencoder (pipeline.tiling = Tiling.diffusers())"
        yield text, replace(run, tiling=small)


_CACHES: dict[str, dict[str, Any]] = {
    "`residual.store='int8'`": {"store": "int8"},
    "`residual.store='int4'`": {"store": "int4"},
    "`residual.place='host'`": {"place": "host"},
    "`residual.policy='none'`": {"policy": "none"},
}
