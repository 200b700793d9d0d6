"""Integer weights as bytes: 4 bits in half a byte, 6 bits in three quarters, 8 bits as they are.

A byte holds rows that are far apart, not neighbours: a 4-bit byte holds rows k and k + K/2. Unpacking then gives two
(or four) contiguous panels of the matrix and moves nothing across lanes, and the layout does not depend on a tile size:

    4 bits   byte[k, n] = w[k, n] & 15 | w[k + K/2, n] << 4                                     K/2 bytes a column
    6 bits   w = 4 h + l: the plane of h in -8..7 as above, then the plane of l in 0..3, where
             byte[k, n] = l[k, n] | l[k + K/4, n] << 2 | l[k + K/2, n] << 4 | l[k + 3K/4, n] << 6   + K/4
    8 bits   byte[k, n] = w[k, n]                                                               K
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Int8

WeightLayout = Literal["bytes", "bytes_transposed", "int4"]
LAYOUTS: tuple[WeightLayout, ...] = get_args(WeightLayout)
PARTS = {4: 2, 6: 4, 8: 1}
"""Bits -> panels of K whose rows share bytes; K is padded with zero rows to a multiple of that."""


@partial(
    jax.tree_util.register_dataclass, data_fields=["planes"], meta_fields=["bits", "layout", "rows"]
)
@dataclass(frozen=True)
class PackedWeight:
    """A packed matrix [K, N]; a pytree, whose arrays may also be stacked over layers for a scan.

    Attributes:
        planes: int8 arrays, one, or two for 6 bits; or one int4 array [K, N].
        bits: of a value: 4, 6 or 8.
        layout: "bytes" has N last, for TPUs and CPUs; "bytes_transposed" has K last, for tensor cores; "int4" leaves
            the packing to XLA and is the fastest on TPUs (4 bits only).
        rows: K.
    """

    planes: tuple[Any, ...]
    bits: int
    layout: WeightLayout
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.rows, self.planes[0].shape[-2 if self.layout == "bytes_transposed" else -1]

    def columns(self, start: int, stop: int) -> "PackedWeight":
        """Columns `start` to `stop` of the matrix, packed as the whole is."""
        axis = -2 if self.layout == "bytes_transposed" else -1
        planes = tuple(lax.slice_in_dim(plane, start, stop, axis=axis) for plane in self.planes)
        return replace(self, planes=planes)

    @property
    def nbytes(self) -> int:
        """Bytes in memory; two int4 values share one."""
        return sum(plane.size // (1 if plane.dtype == np.int8 else 2) for plane in self.planes)


def pack(values: ArrayLike, *, bits: int, layout: WeightLayout = "bytes") -> PackedWeight:
    """Pack an int8 matrix [K, N] on the host.

    Args:
        values: from -2^(bits-1) to 2^(bits-1) - 1.
        bits: 4, 6 or 8.
        layout: see `PackedWeight`.

    Raises:
        ValueError: another dtype, rank, number of bits or layout, or a value out of range.
    """
    matrix = np.asarray(values)
    if bits not in PARTS or layout not in LAYOUTS or (layout == "int4" and bits != 4):
        raise ValueError(
            f"no layout {layout!r} with {bits} bits; layouts are {', '.join(LAYOUTS)}"
            " ('int4' with 4 bits), bits 4, 6 or 8"
        )
    if matrix.dtype != np.int8 or matrix.ndim != 2:
        raise ValueError(f"expected an int8 matrix, found {matrix.dtype} {matrix.shape}")
    limit = 2 ** (bits - 1)
    if matrix.size and not -limit <= matrix.min() <= matrix.max() < limit:
        raise ValueError(
            f"values from {matrix.min()} to {matrix.max()} do not fit {bits} bits ({-limit} to {limit - 1})"
        )
    rows = matrix.shape[0]
    if layout == "int4":
        return PackedWeight((jnp.asarray(matrix, jnp.int4),), bits, layout, rows)
    padded = np.pad(matrix, ((0, -rows % PARTS[bits]), (0, 0)))
    planes = (padded,) if bits == 8 else (_join(padded, 2),)
    if bits == 6:
        planes = (_join(padded >> 2, 2), _join(padded & 3, 4))
    if layout == "bytes_transposed":
        planes = tuple(np.ascontiguousarray(plane.T) for plane in planes)
    return PackedWeight(tuple(map(jnp.asarray, planes)), bits, layout, rows)


def unpack(weight: PackedWeight) -> Int8[Array, "K N"]:
    """The int8 matrix, exactly; works inside `jax.jit`."""
    if weight.layout == "int4":
        return weight.planes[0].astype(jnp.int8)
    planes = weight.planes
    if weight.layout == "bytes_transposed":
        planes = tuple(jnp.swapaxes(plane, -1, -2) for plane in planes)
    if weight.bits == 8:
        values = planes[0]
    else:
        values = _split_signed(planes[0])
        if weight.bits == 6:
            values = values << 2 | _split_unsigned(planes[1])
    return values[: weight.rows]


# Bytes of an integer -> 0xF0 and 0x0C in each of them, as signed numbers.
_MASKS = {1: (-0x10, 0x0C), 4: (-0x0F0F0F10, 0x0C0C0C0C)}
FACTOR = {4: 16, 6: 4, 8: 1}
"""What `widened` multiplies values by."""


def widened(bits: int, planes: Sequence[Array]) -> list[Array]:
    """The panels of K for kernels, `FACTOR` times the weights: made by shifts and masks, without extending signs.

    A nibble left in, or moved to, the upper half of its byte is 16 times its value with the right sign; the two low
    bits of 6 go below it.

    Args:
        bits: of a value.
        planes: a block of each plane, as int8 or as int32 words of four bytes. For 6 bits a block of the upper and one of
            the lower half of the nibble plane, then one of the plane of the low bits.
    """
    if bits == 8:
        return list(planes)
    upper, below = _MASKS[planes[0].dtype.itemsize]
    if bits == 4:
        return [(planes[0] << 4) & upper, planes[0] & upper]
    first, second, low = planes
    return [
        ((first << 4) & upper) | ((low << 2) & below),
        ((second << 4) & upper) | (low & below),
        (first & upper) | ((low >> 2) & below),
        (second & upper) | ((low >> 4) & below),
    ]


def _join(values: np.ndarray, parts: int) -> np.ndarray:
    """Put `parts` equal panels of rows side by side in the bits of a byte, the first in the lowest bits."""
    width = 8 // parts
    fields = values.view(np.uint8) & np.uint8(2**width - 1)
    joined = np.zeros((len(values) // parts, values.shape[1]), np.uint8)
    for place, panel in enumerate(np.split(fields, parts)):
        joined |= panel << np.uint8(place * width)
    return joined.view(np.int8)


def _split_signed(plane: Array) -> Array:
    """Both nibbles with their signs: arithmetic shifts extend them."""
    return jnp.concatenate([plane << 4 >> 4, plane >> 4])


def _split_unsigned(plane: Array) -> Array:
    """The four 2-bit fields."""
    return jnp.concatenate([plane >> shift & 3 for shift in (0, 2, 4, 6)])
