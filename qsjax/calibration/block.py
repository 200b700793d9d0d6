"""The calibration of one block: start, train, measure, pack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qsjax.calibration.blocks import Leaves
from qsjax.calibration.inputs import Inputs
from qsjax.calibration.measure import measure, signal_to_noise
from qsjax.calibration.methods import Method
from qsjax.calibration.packed import quantized_leaves
from qsjax.calibration.programs import Figures, Programs
from qsjax.calibration.rounding import round_block
from qsjax.calibration.variables import (
    Learned,
    Starts,
    initial,
    start_rotations,
    untransformed,
    used_transforms,
)
from qsjax.quant import SITES
from qsjax.quant.sites import part
from qsjax.quant.smoothing import smoothquant

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Result:
    """A calibrated block.

    Attributes:
        leaves: of the quantized block, by the names of the unstacked model without the block's own prefix.
        learned: the variables that they were made from.
        kernels: layer -> its weights in the fake-quantized block, where they were not rounded to nearest.
        report: plain data: loss curve, terms and signal-to-noise ratios before and after.
    """

    leaves: dict[str, np.ndarray]
    learned: Learned
    kernels: Mapping[str, jax.Array]
    report: dict[str, Any]


def calibrate(
    programs: Programs,
    leaves: Leaves,
    inputs: Inputs,
    peaks: Mapping[str, np.ndarray],
    rows: np.ndarray,
    *,
    seed: int,
    advance: Advance | None = None,
) -> Result:
    """Find a block's transforms and clips, and quantize it.

    Args:
        programs: of its kind.
        leaves: its float weights.
        inputs: the samples.
        peaks, rows: of `observe`.
        seed: of the order of the samples.
        advance: told the loss after each step, 1 at the start.
    """
    kind, recipe, method, config = (
        programs.kind,
        programs.recipe,
        programs.method,
        programs.config,
    )
    starts = start_rotations(kind, recipe, config)
    smoothing = _smoothing(programs, leaves, peaks) if recipe.smoothing else None
    outputs = {site.layer: leaves[f"{site.linear}.kernel"].shape[1] for site in SITES[kind]}
    learned = initial(kind, recipe, method, config, smoothing, outputs)
    plain, identity = untransformed(learned, starts)
    rtn = measure(programs, plain, identity, leaves, inputs, rows)
    first = measure(programs, learned, starts, leaves, inputs, rows)
    scales = np.ones(3, np.float32)
    if method.auto:
        scales = np.array([1 / max(x, 1e-30) for x in first[:3]], np.float32)
    curve: list[float] = []
    if method.learns:
        learned, curve = _train(
            programs, learned, starts, leaves, inputs, rows, jnp.asarray(scales), seed, advance
        )
    rounded, kernels = round_block(programs, leaves, learned, inputs)
    changed = method.learns or kernels
    last = measure(programs, learned, starts, leaves, inputs, rows, kernels) if changed else first
    report = {
        "loss": curve,
        "round_to_nearest": rtn._asdict(),
        "start": first._asdict(),
        "end": last._asdict(),
        "sqnr_round_to_nearest": signal_to_noise(programs, plain, identity, leaves, inputs),
        "sqnr": signal_to_noise(programs, learned, starts, leaves, inputs, kernels),
    }
    return Result(quantized_leaves(programs, leaves, learned, rounded), learned, kernels, report)


def _smoothing(
    programs: Programs, leaves: Leaves, peaks: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
    """SmoothQuant's c for every transform; layers that share one are looked at together."""
    width, smoothing = programs.config.hidden_size, {}
    for name, sites in used_transforms(programs.kind, programs.recipe).items():
        kernels = [part(site, leaves[f"{site.linear}.kernel"], width) for site in sites]
        smoothing[name] = smoothquant(
            jnp.asarray(peaks[name]), jnp.concatenate(kernels, axis=1), programs.method.alpha
        )
    return smoothing


def _train(
    programs: Programs,
    learned: Learned,
    starts: Starts,
    leaves: Leaves,
    inputs: Inputs,
    rows: np.ndarray,
    scales: jax.Array,
    seed: int,
    advance: Advance | None,
) -> tuple[Learned, list[float]]:
    method, state, curve = programs.method, programs.optimizer.init(learned), []
    random, count = np.random.default_rng(seed), len(inputs.tokens)
    for epoch in range(method.epochs):
        total = 0.0
        for index in random.permutation(count):
            mixed = method.inputs == "fp" or (method.inputs == "mixed" and epoch % 2 == 0)
            sample = inputs.sample(int(index), rows, mixed=mixed)
            learned, state, figures = programs.step(
                learned, state, leaves, starts, sample, inputs.shared, scales
            )
            loss = _total(figures, scales, method)
            total += loss
            if advance is not None:
                advance(loss)
        curve.append(total / count)
    return learned, curve


def _total(figures: Figures, scales: jax.Array, method: Method) -> float:
    weights = np.array([1.0, method.global_weight, method.local_weight])
    return float(np.dot(weights * np.asarray(scales), [float(x) for x in figures[:3]]))
