"""Block after block through a model: the order, the activations between blocks, resumption."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qsjax.calibration import block as one_block
from qsjax.calibration.blocks import KINDS, Leaves, Tokens
from qsjax.calibration.boundary import Boundary, delete
from qsjax.calibration.inputs import Inputs, advance_student, observe
from qsjax.calibration.methods import Method
from qsjax.calibration.programs import Programs, Shared
from qsjax.calibration.samples import Samples
from qsjax.calibration.variables import effective_recipe
from qsjax.dit import DiT, DiTConfig
from qsjax.progress import Progress
from qsjax.quant import Recipe

Keep = Callable[[str, int, Mapping[str, np.ndarray], dict[str, Any]], None]
"""Receives every finished block: kind, index, leaves, report."""


@runtime_checkable
class Source(Protocol):
    """Where blocks come from.

    Attributes:
        config: sizes.
        ends: a DiT; its embedders are used, its blocks are not.
    """

    config: DiTConfig
    ends: DiT

    def leaves(self, kind: str, index: int) -> Mapping[str, np.ndarray]:
        """One block's float weights, named as in the block, on the host."""
        ...


def calibrate_blocks(
    source: Source,
    samples: Samples,
    recipe: Recipe,
    method: Method,
    keep: Keep,
    *,
    seed: int = 0,
    folder: Path | None = None,
    finished: int = 0,
    progress: bool = True,
) -> None:
    """Calibrate all blocks, from the first that is not finished.

    A block's targets are the float block's outputs on float inputs, so that blocks do not wait for each other's errors. The
    activations between blocks are computed once; with a folder they are files, and the inputs of an unfinished block stay
    until it is finished: a run that was killed goes on there, and ends with the same bits.

    Args:
        source: of the float blocks.
        samples: of `collect`.
        recipe: bits and transforms.
        method: how they are found.
        keep: stores a finished block.
        seed: of the order of samples and of random attention rows.
        folder: for activations; None holds them in memory.
        finished: blocks that need not be done again.
        progress: show a bar with block, loss, rate and time left.
    """
    order = block_order(source.config)
    count, video = len(samples.timestep), _video_tokens(source.config, samples)
    method = method.sized(video)
    recipe, steps = effective_recipe(recipe, method), method.epochs * count
    frames = samples.latents.shape[2] // source.config.patch_size[0]
    programs = {
        kind: Programs(kind, recipe, method, source.config, steps, frames) for kind in KINDS
    }
    separate = method.follows
    active, conditions, shared, start = _front(source, samples, folder, finished)
    # A round-trip through the host makes these inputs uncommitted, like the weights of a block: arrays committed to a device
    # would compile every program once more.
    active, conditions, shared = jax.tree.map(
        lambda array: jnp.asarray(np.asarray(array)), (active, conditions, shared)
    )
    mask = jnp.asarray(samples.mask)
    student_tokens = _resumed(start, folder, finished, "given") if separate else start
    per_block = steps if method.learns else 1
    with Progress(
        per_block * len(order),
        "calibrate",
        unit="step",
        initial=per_block * finished,
        enabled=progress,
    ) as bar:
        tokens = start
        for number in range(finished, len(order)):
            kind, index = order[number]
            began, program = time.perf_counter(), programs[kind]
            leaves: Leaves = {
                name: jnp.asarray(x) for name, x in source.leaves(kind, index).items()
            }
            inputs = Inputs(tokens, student_tokens, active, conditions, mask, shared)
            after = Boundary.empty(tokens.shapes, tokens.dtype, folder, f"float-{number + 1}")
            peaks, rows = observe(program, leaves, inputs, after, seed + number)
            after.commit(folder, f"float-{number + 1}")

            def advance(loss: float, name: str = f"{number + 1}/{len(order)}") -> None:
                bar.advance(1, block=name, loss=f"{loss:.3f}")

            result = one_block.calibrate(
                program, leaves, inputs, peaks, rows, seed=seed + number, advance=advance
            )
            if separate:
                student_after = Boundary.empty(
                    tokens.shapes, tokens.dtype, folder, f"given-{number + 1}"
                )
                advance_student(
                    program, leaves, result.learned, inputs, student_after, result.kernels
                )
                student_after.commit(folder, f"given-{number + 1}")
                student_tokens = student_after
            seconds = time.perf_counter() - began
            report = {"block": f"{kind}.{index}", "seconds": round(seconds, 2), **result.report}
            keep(kind, index, result.leaves, report)
            for name in ("float", "given"):
                delete(folder, f"{name}-{number}")
            tokens = after
            student_tokens = student_tokens if separate else tokens
            if not method.learns:
                bar.advance(1, block=f"{number + 1}/{len(order)}")


def block_order(config: DiTConfig) -> list[tuple[str, int]]:
    """Every block as (kind, index), in the order in which tokens pass them."""
    counts = {"double_blocks": config.num_double_blocks, "single_blocks": config.num_single_blocks}
    return [(kind, index) for kind, count in counts.items() for index in range(count)]


def _front(
    source: Source, samples: Samples, folder: Path | None, finished: int
) -> tuple[jax.Array, jax.Array, Shared, Boundary]:
    """Conditioning of all samples, and of all prompts at all their times; rotary tables; and the inputs of the first unfinished block."""
    dit = source.ends

    @jax.jit
    def embed(
        dit: DiT,
        latents: Array,
        timestep: Array,
        text: Array,
        mask: Array,
        pooled: Array,
        guidance: Array | None,
    ) -> tuple[Array, Array, Array, Shared]:
        img, txt, context = dit.embed(latents, timestep, text, mask)
        active = dit.conditioning(timestep, pooled, guidance)
        return img, txt, active, Shared(context.cos, context.sin)

    @jax.jit
    def all_conditions(dit: DiT, timestep: Array, pooled: Array, guidance: Array | None) -> Array:
        count = len(timestep)
        guidance = None if guidance is None else jnp.repeat(guidance, count)
        return dit.conditioning(
            jnp.tile(timestep, count), jnp.repeat(pooled, count, axis=0), guidance
        )

    conditions = all_conditions(
        dit, *jax.tree.map(jnp.asarray, (samples.timestep, samples.pooled, samples.guidance))
    )
    active, boundary, shared = [], None, None
    for index in range(len(samples.timestep)):
        sample = jax.tree.map(
            lambda leaf, index=index: jnp.asarray(leaf[index : index + 1]), samples
        )
        img, txt, row, shared = embed(dit, *sample)
        active.append(row)
        if finished:
            continue
        if boundary is None:
            shapes: list[tuple[int, ...]] = [
                (len(samples.timestep), *part.shape[1:]) for part in (img, txt)
            ]
            boundary = Boundary.empty(shapes, img.dtype, folder, "float-0")
        boundary.write(index, Tokens(img, txt))
    if boundary is None:
        boundary = Boundary.open(dit.dtype, folder, f"float-{finished}")
    else:
        boundary.commit(folder, "float-0")
    assert shared is not None  # there is at least one sample
    return jnp.concatenate(active), conditions, shared, boundary


def _resumed(start: Boundary, folder: Path | None, finished: int, name: str) -> Boundary:
    """The quantized model's tokens: at the beginning those of the float model."""
    if not finished:
        return start
    return Boundary.open(start.dtype, folder, f"{name}-{finished}")


def _video_tokens(config: DiTConfig, samples: Samples) -> int:
    sizes = zip(samples.latents.shape[2:], config.patch_size, strict=True)
    return int(np.prod([size // patch for size, patch in sizes]))
