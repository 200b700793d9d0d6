"""The training loop: batches by step number, checkpoints, resumption, a log of the figures.

A batch is a function of the step, so a run that was stopped continues with the data it would have seen.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from qsjax.errors import CheckpointError
from qsjax.progress import Progress

State = Any
Figures = dict[str, jax.Array]
_LOG = "figures.jsonl"


def run(
    *,
    label: str,
    directory: Path,
    state: State,
    step: Callable[[State, Any, jax.Array], tuple[State, Figures]],
    batch: Callable[[int], Any],
    steps: int,
    seed: int,
    save_every: int = 200,
    log_every: int = 20,
    on_save: Callable[[State, int], dict[str, float]] | None = None,
) -> State:
    """Train from the newest checkpoint in `directory` (or from `state`) up to `steps`.

    Args:
        label: for the progress bar.
        directory: receives `step_0000200/...` and `figures.jsonl`.
        state: the initial state, a pytree of arrays; donated.
        step: jitted, `(state, batch, key) -> (state, figures)`.
        batch: `index -> arrays` of that step.
        steps: total number, those already done included.
        seed: of the keys handed to `step`.
        save_every: steps between checkpoints; the last one is always saved.
        log_every: steps between lines of the log.
        on_save: called at each checkpoint, may return figures (an evaluation) for the log.

    Returns:
        The state after `steps`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state, done = restore(directory, state)
    start = time.time()
    with Progress(steps, label, unit="step", initial=done) as bar:
        for index in range(done, steps):
            key = jax.random.fold_in(jax.random.key(seed), index)
            state, figures = step(state, batch(index), key)
            last = index + 1 == steps
            shown = {}
            if last or (index + 1) % log_every == 0:
                shown = {name: float(value) for name, value in figures.items()}
                _append(directory, {"step": index + 1, "seconds": time.time() - start, **shown})
            if last or (index + 1) % save_every == 0:
                save(directory, state, index + 1)
                if on_save is not None:
                    _append(directory, {"step": index + 1, **on_save(state, index + 1)})
            bar.advance(1, **{name: f"{value:.4g}" for name, value in shown.items()})
    return state


def save(directory: Path, state: State, step: int) -> None:
    """Write a checkpoint and drop all but the newest two."""
    path = directory / f"step_{step:07d}"
    if path.exists():
        shutil.rmtree(path)
    ocp.save(path.absolute(), _named(state))
    for old in _checkpoints(directory)[:-2]:
        shutil.rmtree(old)


def restore(directory: Path, state: State, *, required: str | None = None) -> tuple[State, int]:
    """The newest checkpoint in the form of `state`, and its step; `state` and 0 if there is none.

    Args:
        directory: of a run.
        state: a pytree of arrays.
        required: name of the stage that should have left a checkpoint.

    Raises:
        CheckpointError: there is none, and one is required.
    """
    if required is not None:
        require(directory, required)
    checkpoints = _checkpoints(directory)
    if not checkpoints:
        return state, 0
    leaves, form = jax.tree.flatten(state)
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in _named(state).items()
    }
    loaded = ocp.load(checkpoints[-1].absolute(), abstract)
    # A round-trip through the host: a resumed run has the placement, and therefore the compiled step, of a fresh run.
    arrays = [jnp.asarray(np.asarray(loaded[f"{i:04d}"])) for i in range(len(leaves))]
    return jax.tree.unflatten(form, arrays), int(checkpoints[-1].name.removeprefix("step_"))


def require(directory: Path, stage: str) -> None:
    """Refuse a folder that a stage should have left a checkpoint in, before anything is made to restore it to.

    Raises:
        CheckpointError: there is none.
    """
    if not _checkpoints(directory):
        raise CheckpointError(f"{directory}: no checkpoint; run `stage={stage!r}` first")


def read_log(directory: Path) -> list[dict[str, float | int]]:
    """The lines of a run's log, in order; of steps that a resumed run repeated, the last time counts."""
    path = directory / _LOG
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept: dict[tuple[int, bool], dict[str, float | int]] = {}
    for line in lines:
        kept[line["step"], "seconds" in line] = line
    return sorted(kept.values(), key=lambda line: line["step"])


def _named(state: State) -> dict[str, jax.Array]:
    return {f"{i:04d}": jnp.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step_*") if path.name[5:].isdecimal())


def _append(directory: Path, figures: Mapping[str, float | int]) -> None:
    with (directory / _LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps(figures) + "\n")
