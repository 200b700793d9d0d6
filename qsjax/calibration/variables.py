"""What calibration learns of a block, and how: smoothing, rotations and clips, with two learning rates."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from qsjax.calibration.methods import Method
from qsjax.dit import DiTConfig
from qsjax.quant import SITES, Recipe, Rotation, Site, Transform
from qsjax.quant.rotation import turned
from qsjax.quant.sites import channels, mergeable, start_rotation

_FIRST_CLIP = 4.0  # sigmoid 0.982, as FlatQuant starts
_BRANCH_RATE = 1e-4  # of low-rank corrections, which move weights themselves
_NO_CLIP = 30.0  # sigmoid 1.0 in float32


class Clips(NamedTuple):
    """Logits of a layer's clips: of each output channel's weights, and of all its tokens."""

    weight: Float[Array, " N"]
    activation: Float[Array, ""]


class Branch(NamedTuple):
    """Low-rank corrections of a layer: `left right` of its weights, `into out` beside it, of rank 1."""

    left: Float[Array, "K R"]
    right: Float[Array, "R N"]
    into: Float[Array, "K 1"]
    out: Float[Array, "1 N"]


class Learned(NamedTuple):
    """The trainable state of a block; a pytree. Absent parts are None.

    Attributes:
        log_smoothing: transform -> log c, [K].
        generators: transform -> generators of the Cayley factors, zeros at the start.
        clips: layer -> logits.
        branches: layer -> low-rank corrections.
    """

    log_smoothing: dict[str, Array | None]
    generators: dict[str, Rotation | None]
    clips: dict[str, Clips | None]
    branches: dict[str, Branch | None]


Starts = Mapping[str, Rotation | None]
"""Transform -> the rotation that training starts from."""


def effective_recipe(recipe: Recipe, method: Method) -> Recipe:
    """The recipe with the method's kind of rotation, and without transforms that it has no use for: what its checkpoint says."""
    rotation = "none"
    if method.rotation and recipe.rotation != "none":
        rotation = method.rotation_kind or recipe.rotation
    return replace(
        recipe,
        rotation=rotation,
        rotation_signs=recipe.rotation_signs and rotation != "none",
        smoothing=recipe.smoothing and method.smoothing,
        branch=method.rank > 0,
    )


def used_transforms(kind: str, recipe: Recipe) -> dict[str, tuple[Site, ...]]:
    """Transform -> the sites that read through it; without those that the recipe cannot have."""
    kept, used = mergeable(kind, recipe), {}
    for site in SITES[kind]:
        if site.transform in kept:
            used[site.transform] = (*used.get(site.transform, ()), site)
    return used


def start_rotations(kind: str, recipe: Recipe, config: DiTConfig) -> dict[str, Rotation | None]:
    """Transform -> the Hadamard rotation that it begins with."""
    sizes = (config.hidden_size, config.mlp_size, config.head_dim)
    used = used_transforms(kind, recipe)
    return {
        site.transform: start_rotation(site, recipe, *sizes) if site.transform in used else None
        for site in SITES[kind]
    }


def initial(
    kind: str,
    recipe: Recipe,
    method: Method,
    config: DiTConfig,
    smoothing: Mapping[str, Array] | None,
    outputs: Mapping[str, int],
) -> Learned:
    """The variables before training. NumPy makes them: eager jax.numpy would compile a program for every shape.

    Args:
        kind: of the block.
        recipe: the effective one.
        method: what is learned.
        config: sizes.
        smoothing: transform -> c; None has no smoothing.
        outputs: layer -> output channels.
    """
    starts, used = start_rotations(kind, recipe, config), used_transforms(kind, recipe)
    names = dict.fromkeys(site.transform for site in SITES[kind])
    log_c = {
        name: jnp.asarray(np.log(np.asarray(smoothing[name])))
        if smoothing is not None and name in used
        else None
        for name in names
    }
    generators = {name: _zeros(starts[name]) for name in names}
    clips = {
        layer: Clips(_filled(_FIRST_CLIP, count), _filled(_FIRST_CLIP))
        if method.learn_clips
        else None
        for layer, count in outputs.items()
    }
    sizes = (config.hidden_size, config.mlp_size)
    branches = {
        site.layer: _branch(channels(site, *sizes), outputs[site.layer], method.rank, number)
        for number, site in enumerate(SITES[kind])
    }
    return Learned(log_c, generators, clips, branches)


def _branch(inputs: int, outputs: int, rank: int, seed: int) -> Branch | None:
    """Corrections that are zero at first, since one factor of each is."""
    if not rank:
        return None
    random = np.random.default_rng(seed)

    def gaussian(*shape: int) -> Array:
        return jnp.asarray((random.standard_normal(shape) / np.sqrt(inputs)).astype(np.float32))

    return Branch(
        gaussian(inputs, rank),
        _filled(0.0, rank, outputs),
        gaussian(inputs, 1),
        _filled(0.0, 1, outputs),
    )


def _filled(value: float, *shape: int) -> Array:
    return jnp.asarray(np.full(shape, value, np.float32))


def _zeros(rotation: Rotation | None) -> Rotation | None:
    return jax.tree.map(lambda factor: jnp.asarray(np.zeros_like(factor)), rotation)


def untransformed(learned: Learned, starts: Starts) -> tuple[Learned, dict[str, Rotation | None]]:
    """Variables of the same structure that do nothing: round-to-nearest, for the same compiled program."""

    def identity(rotation: Rotation | None) -> Rotation | None:
        if rotation is None:
            return None
        return jax.tree.map(lambda factor: np.eye(len(factor), dtype=np.float32), rotation)

    plain = Learned(
        jax.tree.map(np.zeros_like, learned.log_smoothing),
        jax.tree.map(np.zeros_like, learned.generators),
        jax.tree.map(lambda logit: np.full_like(logit, _NO_CLIP), learned.clips),
        jax.tree.map(np.zeros_like, learned.branches),
    )
    return jax.tree.map(jnp.asarray, plain), {
        name: identity(rotation) for name, rotation in starts.items()
    }


def current_transforms(learned: Learned, starts: Starts) -> dict[str, Transform]:
    """Transform -> its smoothing and rotation, differentiable in `learned`."""
    current = {}
    for name, start in starts.items():
        log_c, generators = learned.log_smoothing[name], learned.generators[name]
        rotation = None
        if start is not None and generators is not None:
            rotation = turned(start, generators)
        current[name] = Transform(None if log_c is None else jnp.exp(log_c), rotation)
    return current


def optimizer(method: Method, steps: int) -> optax.GradientTransformation:
    """AdamW with cosine decay to a thousandth; variables that are not learned stay as they are.

    Without weight decay: it would pull the logits of clips towards 0, which is half the range, and smoothing towards 1.
    """

    def adamw(rate: float) -> optax.GradientTransformation:
        return optax.adamw(
            optax.cosine_decay_schedule(rate, max(steps, 1), alpha=1e-3), weight_decay=0.0
        )

    def labels(learned: Learned) -> Learned:
        def all_of(tree: Any, label: str, active: bool) -> Any:
            return jax.tree.map(lambda _: label if active else "fixed", tree)

        return Learned(
            all_of(learned.log_smoothing, "transform", method.learn_smoothing),
            all_of(learned.generators, "transform", method.learn_rotation),
            all_of(learned.clips, "clip", method.learn_clips),
            all_of(learned.branches, "branch", method.rank > 0),
        )

    groups: Any = {
        "transform": adamw(method.learning_rate),
        "clip": adamw(method.clip_learning_rate),
        "branch": adamw(_BRANCH_RATE),
        "fixed": optax.set_to_zero(),
    }
    to_labels: Callable[[Any], Any] = labels
    return optax.multi_transform(groups, to_labels)


def smoothing_peaks(
    kind: str, inputs: Mapping[str, Array], valid: Mapping[str, Array]
) -> dict[str, Array]:
    """Transform -> largest absolute value of each input channel over the valid tokens, [K].

    Args:
        kind: of the block.
        inputs: layer -> its input [B, L, K].
        valid: layer -> which of its tokens are there, [B, L].
    """
    peaks: dict[str, Array] = {}
    for site in SITES[kind]:
        x = jnp.abs(inputs[site.layer].astype(jnp.float32))
        peak = (x * valid[site.layer][:, :, None].astype(jnp.float32)).max(axis=(0, 1))
        known = peaks.get(site.transform)
        peaks[site.transform] = peak if known is None else jnp.maximum(known, peak)
    return peaks
