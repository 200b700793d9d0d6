"""Where quantized layers sit in a block, what makes their inputs, and what can be merged where.

A block is a dict of leaves as the unstacked model names them ("img.qkv.kernel"). Every site has an input transform, a
division by c and a rotation R; the weights are multiplied by the inverse, so that nothing changes in exact arithmetic:

    input made by      c                                R
    modulated norm     in the modulation's weights      online, before the quantization
    attention          in the columns of V that make    per head, merged into V; both streams of a double block share
                       it                               it, since their tokens mix
    GELU               online (not linear)              online
"""

import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.quant import rotation as rotations
from qsjax.quant.recipe import Recipe
from qsjax.quant.rotation import Rotation, rotate, rotate_rows

Source = Literal["modulated", "attention", "gelu"]


class Site(NamedTuple):
    """A linear layer of a block, or the half of one that has an input of its own.

    Attributes:
        layer: its name in the quantized block.
        linear: the layer of the float block.
        source: what makes its input.
        transform: name of its input transform; sites may share one.
        modulation: the layer that makes shift and scale of a modulated norm.
        first: number of the shift vector there; the scale is the next.
        values: transform of the attention output, for layers whose columns hold V.
    """

    layer: str
    linear: str
    source: Source
    transform: str
    modulation: str = ""
    first: int = 0
    values: str = ""


class Transform(NamedTuple):
    """An input transform x -> rotate(x / smoothing); a pytree, None for what is absent."""

    smoothing: Array | np.ndarray | None = None
    rotation: Rotation | None = None


def _stream(name: str) -> tuple[Site, ...]:
    modulation = f"{name}.modulation"
    return (
        Site(f"{name}.qkv", f"{name}.qkv", "modulated", f"{name}.qkv", modulation, 0, "attention"),
        Site(f"{name}.proj", f"{name}.proj", "attention", "attention"),
        Site(f"{name}.fc1", f"{name}.fc1", "modulated", f"{name}.fc1", modulation, 3),
        Site(f"{name}.fc2", f"{name}.fc2", "gelu", f"{name}.fc2"),
    )


SITES: Mapping[str, tuple[Site, ...]] = {
    "double_blocks": (*_stream("img"), *_stream("txt")),
    "single_blocks": (
        Site("linear1", "linear1", "modulated", "linear1", "modulation", 0, "attention"),
        Site("linear2.attention", "linear2", "attention", "attention"),
        Site("linear2.mlp", "linear2", "gelu", "linear2.mlp"),
    ),
}
"""Kind of block -> its sites, in the order in which they run."""


def channels(site: Site, width: int, mlp: int) -> int:
    """Input channels of a site."""
    return mlp if site.source == "gelu" else width


def start_rotation(site: Site, recipe: Recipe, width: int, mlp: int, head: int) -> Rotation | None:
    """The Hadamard rotation that a site begins with; one that is merged into V stays within a head.

    Its signs are those of the transform's name: sites that share a transform share them. They are part of the matrix that is
    stored, so that nobody needs them again.
    """
    seed = zlib.crc32(site.transform.encode()) if recipe.rotation_signs else None
    if site.source == "attention":
        kind = "none" if recipe.rotation == "none" else "block"
        return rotations.start(kind, head, head, seed=seed)
    return rotations.start(
        recipe.rotation, channels(site, width, mlp), recipe.rotation_size, seed=seed
    )


def modulations(kind: str) -> tuple[str, ...]:
    """The modulation layers of a kind of block."""
    return tuple(dict.fromkeys(site.modulation for site in SITES[kind] if site.modulation))


def part(site: Site, kernel: Array | np.ndarray, width: int) -> Array | np.ndarray:
    """The rows of the float layer's kernel that belong to a site."""
    if not site.layer.startswith("linear2."):
        return kernel
    return kernel[:width] if site.source == "attention" else kernel[width:]


def has_bias(site: Site) -> bool:
    """Of the two halves of a single block's second layer, the first one carries the bias."""
    return site.layer != "linear2.mlp"


def mergeable(kind: str, recipe: Recipe) -> frozenset[str]:
    """The transforms of a kind of block that a recipe can have: all layers that take part are quantized.

    Only the attention output's can be missing: V's columns are merged with it, in both streams.
    """
    floating = {
        name
        for site in SITES[kind]
        if not recipe.precision(f"{kind}.{site.linear}").quantized
        for name in (site.transform, site.values)
    }
    return frozenset(site.transform for site in SITES[kind]) - floating


def merged_kernel(
    site: Site,
    kernel: Float[Array, "K N"],
    transforms: Mapping[str, Transform],
    width: int,
    *,
    first: int = 0,
) -> Float[Array, "R N"]:
    """The float32 weights of a transformed site, V's columns transformed as the attention's output is.

    Args:
        site: where.
        kernel: of the float layer, all its rows; all its columns, or a range of them that cuts no head of V.
        transforms: by name.
        width: D, the model's.
        first: number of the first column.
    """
    kernel = jnp.asarray(part(site, kernel, width), jnp.float32)
    if site.values:
        kernel = _with_values(kernel, transforms[site.values], width, first)
    smoothing, rotation = transforms[site.transform]
    if smoothing is not None:
        kernel = kernel * smoothing[:, None]
    return rotate_rows(kernel, rotation)


def merged_bias(
    site: Site, bias: Float[Array, " N"], transforms: Mapping[str, Transform], width: int
) -> Float[Array, " N"]:
    """The float32 bias that goes with `merged_kernel`."""
    bias = bias.astype(jnp.float32)
    if not site.values:
        return bias
    return _with_values(bias[None], transforms[site.values], width)[0]


def online(site: Site, transform: Transform) -> Transform:
    """The part of a transform that remains to be done at run time."""
    return {
        "modulated": Transform(None, transform.rotation),
        "attention": Transform(),
        "gelu": transform,
    }[site.source]


def _with_values(rows: Array, transform: Transform, width: int, first: int = 0) -> Array:
    """V's columns of a range that begins at `first`, divided and rotated."""
    start = max(2 * width - first, 0)
    stop = min(3 * width - first, rows.shape[1])
    if start >= stop:
        return rows
    values = rows[:, start:stop]
    if transform.smoothing is not None:
        channel = first + start - 2 * width
        values = values / transform.smoothing[None, channel : channel + stop - start]
    return rows.at[:, start:stop].set(rotate(values, transform.rotation))
