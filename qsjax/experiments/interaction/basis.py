"""Attention's output of a quantized model in the float model's channels.

The transform of the layer after attention is merged into V's columns (`qsjax.quant.sites`), so that attention's output comes
divided by a scale c and rotated, head by head. The rotation is known where it is not learned; c is what V's bias, which is
stored in float32, was divided by.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.dit import DiT
from qsjax.errors import InputError
from qsjax.params import parameters
from qsjax.quant import SITES, Recipe
from qsjax.quant.sites import start_rotation

_TOLERANCE = 1e-3
V_LAYERS = {"double_blocks": ("img.qkv", "txt.qkv"), "single_blocks": ("linear1",)}
"""Kind of block -> the layers that make V."""


def to_float_channels(dit: DiT, quantized: DiT, recipe: Recipe) -> Float[Array, "N H D D"]:
    """Of every layer and head the matrix M for which out M is attention's output in the float model's channels.

    Args:
        dit: the float model.
        quantized: made of it by a method that learns no transforms.
        recipe: what the quantized model's manifest says: without transforms that the method left out.

    Raises:
        InputError: the transforms are learned.
    """
    config = dit.config
    heads, size, width = config.num_heads, config.head_dim, config.hidden_size
    found = []
    for kind, layers in V_LAYERS.items():
        site = next(site for site in SITES[kind] if site.source == "attention")
        rotation = start_rotation(site, recipe, width, config.mlp_size, size)
        turn = np.eye(size) if rotation is None else np.asarray(rotation.runs, np.float64)
        plain, merged = (
            np.stack([_value_bias(model, f"{kind}.{layer}", width) for layer in layers], axis=-2)
            for model in (dit, quantized)
        )  # [layers, streams, D]
        merged = (merged.reshape(*merged.shape[:-1], heads, size) @ turn.T).reshape(merged.shape)
        # The larger of two streams' biases tells c; the other one has to agree.
        larger = np.abs(plain).argmax(axis=-2)[:, None]
        scale = _of(plain, larger) / _of(merged, larger)
        if not recipe.smoothing:
            scale = np.ones_like(scale)
        off = np.abs(merged * scale[:, None] - plain).max()
        if not off <= _TOLERANCE * np.abs(plain).max() or not (scale > 0).all():
            raise InputError(
                "attention's output cannot be compared: its transforms are learned; take a method that learns none"
            )
        scale = scale.reshape(-1, heads, 1, size)
        found.append(turn.T[None, None] * scale)
    return jnp.asarray(np.concatenate(found), jnp.float32)


def _of(biases: np.ndarray, streams: np.ndarray) -> np.ndarray:
    return np.take_along_axis(biases, streams, axis=-2)[:, 0]


def _value_bias(dit: DiT, layer: str, width: int) -> Float[np.ndarray, "N D"]:
    return np.asarray(parameters(dit)[f"{layer}.bias"], np.float64)[:, 2 * width : 3 * width]
