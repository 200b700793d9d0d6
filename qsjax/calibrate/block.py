"""The calibration of one block: observe, start, train, measure, pack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qsjax.calibrate.blocks import Leaves, Tokens, corrected_kernel
from qsjax.calibrate.boundary import Boundary
from qsjax.calibrate.programs import Figures, Programs, Sample, Shared
from qsjax.calibrate.variables import (
    Learned,
    initial,
    start_rotations,
    transforms,
    untransformed,
    used_transforms,
)
from qsjax.quant import SITES
from qsjax.quant.fake import clip_of
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.quant.sites import part
from qsjax.quant.smoothing import absorb, smoothquant
from qsjax.quant.storage import linear_leaves, site_leaves

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Inputs:
    """What a block gets: all samples.

    Attributes:
        tokens: in front of the float block.
        given: in front of the quantized one; the same object where both see float activations.
        active: conditioning, [S, D].
        mask: which text tokens are there, [S, L].
        shared: rotary tables.
    """

    tokens: Boundary
    given: Boundary
    active: jax.Array
    mask: jax.Array
    shared: Shared

    def sample(self, index: int, rows: np.ndarray | None, *, mixed: bool = False) -> Sample:
        """One sample; `mixed` takes the float tokens for the quantized block, too."""
        tokens = self.tokens[index]
        given = tokens if mixed or self.given is self.tokens else self.given[index]
        chosen = np.zeros((1, 1), np.int32) if rows is None else rows[index : index + 1]
        one = slice(index, index + 1)
        return Sample(tokens, given, self.active[one], self.mask[one], jnp.asarray(chosen))


@dataclass(frozen=True)
class Result:
    """A calibrated block.

    Attributes:
        leaves: of the quantized block, by the names of the unstacked model without the block's own prefix.
        learned: the variables behind them.
        report: plain data: loss curve, terms and signal-to-noise ratios before and after.
    """

    leaves: dict[str, np.ndarray]
    learned: Learned
    report: dict[str, Any]


def observe(
    programs: Programs, leaves: Leaves, inputs: Inputs, out: Boundary, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run the float block on all samples.

    Args:
        programs: of its kind.
        leaves: its weights.
        inputs: the samples.
        out: receives its output tokens.
        seed: of random attention rows.

    Returns:
        Peaks of every transform's input, [K], and the attention rows of the local term, int32 [S, R].
    """
    method, rows = programs.method, []
    peaks: dict[str, np.ndarray] = {}
    video = inputs.tokens.shapes[0][1]
    random = np.random.default_rng(seed)
    for index in range(len(inputs.tokens)):
        tokens, found, received = programs.observe(
            leaves, inputs.sample(index, None, mixed=True), inputs.shared
        )
        out.write(index, tokens)
        peaks = {
            name: np.maximum(peaks.get(name, 0), np.asarray(peak)) for name, peak in found.items()
        }
        if method.rows == "salient":
            chosen = np.argsort(-np.asarray(received[0]), kind="stable")[: method.local_rows]
        elif method.rows == "random":
            chosen = random.permutation(video)[: method.local_rows]
        else:
            chosen = np.arange(method.local_rows)
        rows.append(np.sort(chosen).astype(np.int32))
    return peaks, np.stack(rows)


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
    rtn = _measure(programs, plain, identity, leaves, inputs, rows)
    first = _measure(programs, learned, starts, leaves, inputs, rows)
    scales = np.ones(3, np.float32)
    if method.auto:
        scales = np.array([1 / max(x, 1e-30) for x in first[:3]], np.float32)
    curve: list[float] = []
    if method.learns:
        learned, curve = _train(
            programs, learned, starts, leaves, inputs, rows, jnp.asarray(scales), seed, advance
        )
    last = _measure(programs, learned, starts, leaves, inputs, rows) if method.learns else first
    report = {
        "loss": curve,
        "round_to_nearest": rtn._asdict(),
        "start": first._asdict(),
        "end": last._asdict(),
        "sqnr_round_to_nearest": _sqnr(programs, plain, identity, leaves, inputs),
        "sqnr": _sqnr(programs, learned, starts, leaves, inputs),
    }
    return Result(quantized_leaves(programs, leaves, learned), learned, report)


def quantized_leaves(programs: Programs, leaves: Leaves, learned: Learned) -> dict[str, np.ndarray]:
    """The leaves of the packed block: everything merged that can be, modulation included."""
    kind, recipe, config = programs.kind, programs.recipe, programs.config
    given = transforms(learned, start_rotations(kind, recipe, config))
    width, made = config.hidden_size, {}
    kept = {name: value for name, value in leaves.items() if name.endswith("norm.scale")}
    modulation = {
        name: value for name, value in leaves.items() if name.split(".")[-2] == "modulation"
    }
    for site in SITES[kind]:
        kernel, bias = leaves[f"{site.linear}.kernel"], leaves[f"{site.linear}.bias"]
        smoothing = given[site.transform].smoothing
        if site.source == "modulated" and smoothing is not None:
            weight, offset = (f"{site.modulation}.{leaf}" for leaf in ("kernel", "bias"))
            modulation[weight], modulation[offset] = absorb(
                modulation[weight], modulation[offset], smoothing, site.first
            )
        precision = recipe.precision(f"{kind}.{site.linear}")
        if not precision.quantized:
            kept[f"{site.linear}.kernel"], kept[f"{site.linear}.bias"] = kernel, bias
            continue
        clips, branch = learned.clips[site.layer], learned.branches[site.layer]
        weight_clip = 1.0 if clips is None else clip_of(clips.weight)
        activation_clip = None
        if clips is not None and precision.activations != UNQUANTIZED:
            activation_clip = clip_of(clips.activation)
        found = site_leaves(
            site, kernel, bias, given, precision, width,
            weight_clip=weight_clip, activation_clip=activation_clip,
        )  # fmt: skip
        if branch is not None:
            corrected = corrected_kernel(site, leaves, learned, given, config)
            found |= linear_leaves(corrected, precision, clip=weight_clip)
            found |= {"branch_in": np.asarray(branch.into), "branch_out": np.asarray(branch.out)}
        made |= {f"{site.layer}.{name}": leaf for name, leaf in found.items()}
    for name in {name.rpartition(".")[0] for name in modulation}:
        kernel, bias = modulation[f"{name}.kernel"], modulation[f"{name}.bias"]
        precision = recipe.precision(f"{kind}.{name}")
        if precision.quantized:
            found = linear_leaves(kernel, precision)
            made |= {f"{name}.{leaf}": value for leaf, value in found.items()}
            made[f"{name}.bias"] = np.asarray(bias, np.float32)
        else:
            like = leaves[f"{name}.kernel"].dtype
            made[f"{name}.kernel"] = np.asarray(kernel.astype(like))
            made[f"{name}.bias"] = np.asarray(bias.astype(like))
    return {**{name: np.asarray(value) for name, value in kept.items()}, **made}


def _smoothing(
    programs: Programs, leaves: Leaves, peaks: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
    """SmoothQuant's c for every transform; layers that share one are looked at together."""
    width, made = programs.config.hidden_size, {}
    for name, sites in used_transforms(programs.kind, programs.recipe).items():
        kernels = [part(site, leaves[f"{site.linear}.kernel"], width) for site in sites]
        made[name] = smoothquant(
            jnp.asarray(peaks[name]), jnp.concatenate(kernels, axis=1), programs.method.alpha
        )
    return made


def _train(
    programs: Programs,
    learned: Learned,
    starts: Any,
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


def _measure(
    programs: Programs,
    learned: Learned,
    starts: Any,
    leaves: Leaves,
    inputs: Inputs,
    rows: np.ndarray,
) -> Figures:
    """Mean terms over all samples, on float inputs."""
    state, ones = programs.optimizer.init(learned), jnp.ones(3, jnp.float32)

    def one(sample: Sample) -> Figures:
        if not programs.method.learns:
            return programs.measure(learned, leaves, starts, sample, inputs.shared)
        # The program that trains is there already; its update is thrown away.
        return programs.step(learned, state, leaves, starts, sample, inputs.shared, ones)[2]

    found = [one(inputs.sample(i, rows, mixed=True)) for i in range(len(inputs.tokens))]
    return Figures(*(float(np.mean(jax.device_get(term))) for term in zip(*found, strict=True)))


def _sqnr(
    programs: Programs, learned: Learned, starts: Any, leaves: Leaves, inputs: Inputs
) -> dict[str, float]:
    """Layer -> signal over quantization noise of its output on float inputs, decibels, over all samples."""
    sums: dict[str, np.ndarray] = {}
    for index in range(len(inputs.tokens)):
        sample = inputs.sample(index, None, mixed=True)
        found = programs.compare_layers(learned, leaves, starts, sample, inputs.shared)
        for layer, pair in found.items():
            sums[layer] = sums.get(layer, np.zeros(2)) + np.asarray(pair, np.float64)
    return {
        layer: round(float(10 * np.log10(signal / max(noise, 1e-30))), 2)
        for layer, (signal, noise) in sums.items()
    }


def _total(figures: Figures, scales: jax.Array, method: Any) -> float:
    weights = np.array([1.0, method.global_weight, method.local_weight])
    return float(np.dot(weights * np.asarray(scales), [float(x) for x in figures[:3]]))


def next_given(
    programs: Programs, leaves: Leaves, learned: Learned, inputs: Inputs, out: Boundary
) -> None:
    """What the quantized model hands to its next block, for methods that train on it."""
    starts = start_rotations(programs.kind, programs.recipe, programs.config)
    for index in range(len(inputs.given)):
        tokens: Tokens = programs.run_quantized(
            learned, leaves, starts, inputs.sample(index, None), inputs.shared
        )
        out.write(index, tokens)
