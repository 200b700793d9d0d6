"""From float weights to the leaves of a quantized layer, one layer at a time, a range of its columns at a time.

That is exact: scales belong to output channels, and rotations act on rows; V's columns rotate within heads, which no range cuts.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int8

from pallas_kernels import pack
from qsjax.quant.quantizer import quantize_weight
from qsjax.quant.recipe import Precision
from qsjax.quant.sites import Site, Transform, has_bias, merged_bias, merged_kernel, online, part

Leaves = dict[str, np.ndarray]
Kernel = Float[Array, "K N"] | Float[np.ndarray, "K N"]

RANGE_BYTES = 64 * 2**20
"""Size in float32 of the columns that are quantized at once; a few copies of them are held."""


def linear_leaves(kernel: Kernel, precision: Precision, *, clip: Array | float = 1.0) -> Leaves:
    """Packed integers and scales of a matrix: the leaves of `QuantizedLinear` that come from its kernel.

    Args:
        kernel: [in, out].
        precision: bits of weights, and their groups.
        clip: of each output channel, [N], or of all.
    """
    return _by_ranges(
        kernel, precision, clip, 1, lambda columns, clip, _: _quantize(columns, clip, precision)
    )


def packed_leaves(
    integers: Int8[Array, "K N"], scale: Float[Array, "G N"], precision: Precision
) -> Leaves:
    """The same for a matrix that is rounded already."""
    packed = pack(np.asarray(integers), bits=precision.container)
    planes = zip(("packed", "low_bits"), packed.planes, strict=False)
    return {"scale": np.asarray(scale), **{name: np.asarray(plane) for name, plane in planes}}


def kernel_leaves(
    site: Site,
    kernel: Kernel,
    transforms: Mapping[str, Transform],
    precision: Precision,
    width: int,
    *,
    weight_clip: Array | float = 1.0,
) -> Leaves:
    """The same for a site, its transform and V's merged; the arguments are those of `site_leaves`."""
    needed = {name: transforms[name] for name in (site.transform, site.values) if name}
    if not jax.tree.leaves(needed):
        return linear_leaves(part(site, kernel, width), precision, clip=weight_clip)
    rotation = transforms[site.values].rotation if site.values else None

    def quantize(columns: Kernel, clip: np.ndarray, first: int) -> tuple[Array, Array]:
        return _quantize_site(
            columns,
            clip,
            needed,
            site=site,
            precision=precision,
            width=width,
            first=first if site.values else 0,
        )

    multiple = 1 if rotation is None else len(rotation.runs)
    return _by_ranges(kernel, precision, weight_clip, multiple, quantize)


def bias_leaves(
    site: Site,
    bias: Float[Array, " N"] | Float[np.ndarray, " N"],
    transforms: Mapping[str, Transform],
    width: int,
) -> Leaves:
    """The leaf that comes from a site's bias, float32; none for the half of a layer that has no bias."""
    if not has_bias(site):
        return {}
    return {"bias": np.asarray(merged_bias(site, jnp.asarray(bias), transforms, width))}


def input_leaves(
    site: Site, transform: Transform, activation_clip: ArrayLike | None = None
) -> Leaves:
    """The leaves, float32, that say what a site's layer does with its input at run time."""
    smoothing, rotation = online(site, transform)
    leaves = {
        "smoothing": smoothing,
        "rotation": None if rotation is None else rotation.runs,
        "mix": None if rotation is None else rotation.mix,
        "clip": None if activation_clip is None else jnp.reshape(activation_clip, 1),
    }
    return {
        name: np.asarray(value, np.float32) for name, value in leaves.items() if value is not None
    }


def site_leaves(
    site: Site,
    kernel: Kernel,
    bias: Float[Array, " N"] | Float[np.ndarray, " N"] | None,
    transforms: Mapping[str, Transform],
    precision: Precision,
    width: int,
    *,
    weight_clip: Array | float = 1.0,
    activation_clip: ArrayLike | None = None,
    rounded: tuple[Array, Array] | None = None,
) -> Leaves:
    """All leaves of a site's `QuantizedLinear`, everything merged that can be.

    Args:
        site: where.
        kernel: of the float layer, whole.
        bias: of the float layer, whole; None leaves it out.
        transforms: of the block, by name.
        precision: of the site.
        width: D, the model's.
        weight_clip: of each output channel.
        activation_clip: of all tokens; None stores none.
        rounded: integers [K, N] and scales [G, N] of the transformed kernel; None rounds it to nearest.
    """
    return {
        **(
            kernel_leaves(site, kernel, transforms, precision, width, weight_clip=weight_clip)
            if rounded is None
            else packed_leaves(*rounded, precision)
        ),
        **({} if bias is None else bias_leaves(site, bias, transforms, width)),
        **input_leaves(site, transforms[site.transform], activation_clip),
    }


def _by_ranges(
    kernel: Kernel,
    precision: Precision,
    clip: Array | float,
    multiple: int,
    quantize: Callable[[Kernel, np.ndarray, int], tuple[Array, Array]],
) -> Leaves:
    """Quantize and pack ranges of columns whose lengths are a multiple of `multiple`."""
    rows, columns = kernel.shape
    step = max(RANGE_BYTES // (4 * rows) // multiple, 1) * multiple
    clips = np.broadcast_to(np.asarray(clip, np.float32), columns)
    parts: dict[str, list[np.ndarray]] = {}
    for first in range(0, columns, step):
        here = slice(first, first + step)
        integers, scale = quantize(kernel[:, here], clips[here], first)
        packed = pack(np.asarray(integers), bits=precision.container)
        parts.setdefault("scale", []).append(np.asarray(scale))
        for name, plane in zip(("packed", "low_bits"), packed.planes, strict=False):
            parts.setdefault(name, []).append(np.asarray(plane))
    return {
        name: ranges[0] if len(ranges) == 1 else np.concatenate(ranges, axis=1)
        for name, ranges in parts.items()
    }


@partial(jax.jit, static_argnames="precision")
def _quantize(kernel: Array, clip: Array, precision: Precision) -> tuple[Array, Array]:
    return quantize_weight(kernel, precision.weights, clip, group=precision.group)


@partial(jax.jit, static_argnames=("site", "precision", "width", "first"))
def _quantize_site(
    kernel: Array,
    clip: Array,
    transforms: Mapping[str, Transform],
    *,
    site: Site,
    precision: Precision,
    width: int,
    first: int,
) -> tuple[Array, Array]:
    merged = merged_kernel(site, kernel, transforms, width, first=first)
    return quantize_weight(merged, precision.weights, clip, group=precision.group)
