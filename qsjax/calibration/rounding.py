"""The rounding of a block when its transforms are known: with error feedback, layer after layer.

A layer's Gram matrix is that of its inputs in the quantized model: tokens that passed the rounded blocks before, and in this
block the layers that were rounded already.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from qsjax.calibration.blocks import Leaves, corrected_kernel
from qsjax.calibration.inputs import Inputs
from qsjax.calibration.programs import Programs
from qsjax.calibration.variables import Learned, Starts, current_transforms, start_rotations
from qsjax.dit import DiTConfig
from qsjax.quant import SITES, Precision, Site
from qsjax.quant.fake import clip_of
from qsjax.quant.feedback import round_with_feedback, searched_clip
from qsjax.quant.quantizer import weight_scale
from qsjax.quant.sites import modulations
from qsjax.quant.smoothing import absorb


class Rounded(NamedTuple):
    """A layer's weights as they are stored: integers, and a scale for each output channel or group."""

    integers: Int8[Array, "K N"]
    scale: Float[Array, "G N"]

    def kernel(self) -> Float[Array, "K N"]:
        """What the integers stand for, float32."""
        rows = self.integers.shape[0] // self.scale.shape[0]
        return self.integers.astype(jnp.float32) * jnp.repeat(self.scale, rows, axis=0)


def round_block(
    programs: Programs, leaves: Leaves, learned: Learned, inputs: Inputs
) -> tuple[dict[str, Rounded], dict[str, Array]]:
    """Round all layers of a block, those of its modulation too, by `programs.method.rounding`.

    Args:
        programs: of its kind.
        leaves: its float weights.
        learned: its transforms and clips.
        inputs: the samples; `student_tokens` are the quantized model's.

    Returns:
        Layer -> its rounded weights, and layer -> what the fake-quantized block computes with in their place. Both are empty
        for rounding to nearest, which the layers do themselves.
    """
    if programs.method.rounding == "nearest":
        return {}, {}
    kind, recipe, config = programs.kind, programs.recipe, programs.config
    starts = start_rotations(kind, recipe, config)
    rounded: dict[str, Rounded] = {}
    kernels: dict[str, Array] = {}
    conditions = inputs.conditions.astype(jnp.float32)
    gram = jnp.matmul(conditions.T, conditions, precision="highest")
    for name, (kernel, _, gain) in absorbed_modulation(programs, leaves, learned).items():
        precision = recipe.precision(f"{kind}.{name}")
        if precision.quantized:
            rounded[name] = round_layer(
                kernel, gram, None, precision, search=programs.method.search_clips
            )
            kernels[name] = rounded[name].kernel() / gain[None]
    for stage in _stages(kind):
        layers = tuple(
            site.layer for site in stage if recipe.precision(f"{kind}.{site.linear}").quantized
        )
        if not layers:
            continue
        grams = _sum_of_grams(programs, layers, leaves, learned, starts, inputs, kernels)
        for site in stage:
            if site.layer in layers:
                kernel = _transformed(site, leaves, learned, starts, config)
                clips = learned.clips[site.layer]
                rounded[site.layer] = round_layer(
                    kernel,
                    grams[site.layer],
                    None if clips is None else clip_of(clips.weight),
                    recipe.precision(f"{kind}.{site.linear}"),
                    search=programs.method.search_clips,
                )
                kernels[site.layer] = rounded[site.layer].kernel()
    return rounded, kernels


def absorbed_modulation(
    programs: Programs, leaves: Leaves, learned: Learned
) -> dict[str, tuple[Array, Array, Array]]:
    """Modulation layer -> its kernel and bias with the smoothing of the norms absorbed, and the gain [M] of each output in that."""
    kind, recipe, config = programs.kind, programs.recipe, programs.config
    transforms = _transforms(learned, start_rotations(kind, recipe, config))
    found = {}
    for name in modulations(kind):
        kernel, bias = leaves[f"{name}.kernel"], leaves[f"{name}.bias"]
        gain = jnp.asarray(np.ones(kernel.shape[1], np.float32))
        for site in SITES[kind]:
            smoothing = transforms[site.transform].smoothing
            if site.modulation == name and smoothing is not None:
                kernel, bias = absorb(kernel, bias, smoothing, site.first)
                gain = absorb(gain[None], gain, smoothing, site.first)[0][0]
        found[name] = kernel, bias, gain
    return found


def _stages(kind: str) -> list[list[Site]]:
    """Sites whose layers run one after the other; those of one stage do not see each other."""
    stages: dict[str, list[Site]] = {}
    for site in SITES[kind]:
        stages.setdefault(site.linear.rpartition(".")[-1], []).append(site)
    return list(stages.values())


def _sum_of_grams(
    programs: Programs,
    layers: tuple[str, ...],
    leaves: Leaves,
    learned: Learned,
    starts: Starts,
    inputs: Inputs,
    kernels: Mapping[str, Array],
) -> dict[str, Array]:
    total: dict[str, Array] | None = None
    for index in range(len(inputs.student_tokens)):
        sample = inputs.sample(index, None)
        found = programs.grams(layers, learned, leaves, starts, sample, inputs.shared, kernels)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    assert total is not None  # there is at least one sample
    return total


def round_layer(
    kernel: Float[Array, "K N"],
    gram: Float[Array, "K K"],
    clip: Array | None,
    precision: Precision,
    *,
    search: bool,
) -> Rounded:
    """Round a matrix with error feedback.

    Args:
        kernel: [in, out].
        gram: X^T X of its inputs.
        clip: of each output channel; None has none, or the best of some with `search`.
        precision: bits, and input channels that share a scale.
        search: for clips.
    """
    bits, group = precision.weights, precision.group
    kernel = kernel.astype(jnp.float32)
    if clip is None:
        clip = searched_clip(kernel, gram, bits, group=group) if search else jnp.ones(())
    scale = _scale(kernel, clip, bits, group)
    return Rounded(round_with_feedback(kernel, gram, scale, bits), scale)


@partial(jax.jit, static_argnums=(2, 3))
def _scale(kernel: Array, clip: Array, bits: int, group: int) -> Array:
    return weight_scale(kernel, bits, clip, group=group)


_transforms = jax.jit(current_transforms)


@partial(jax.jit, static_argnames=("site", "config"))
def _transformed(
    site: Site, leaves: Leaves, learned: Learned, starts: Starts, config: DiTConfig
) -> Array:
    transforms = current_transforms(learned, starts)
    return corrected_kernel(site, leaves, learned, transforms, config)
