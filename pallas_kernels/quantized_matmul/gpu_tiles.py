"""Tile sizes of the GPU matmul kernel: the largest that the registers hold."""

from dataclasses import dataclass

ROWS_TOGETHER = 16
"""Row tiles that run side by side over all columns, so that activations and weights stay in the L2 cache."""


@dataclass(frozen=True)
class GpuTiles:
    """Tiles m x n of the result, k bytes of a weight column in a step, warps of a program, stages of its pipeline."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def gpu_tiles(m: int, panel: int, bits: int, *, narrow: bool = False) -> GpuTiles:
    """Tiles for M rows of activations against panels of K of `panel` rows.

    Args:
        m: rows of the result (of one group).
        panel: K / parts, a multiple of 32.
        bits: of a weight; with 6, four panels of activations are held at once.
        narrow: leave registers for 64-bit offsets, or for a compiler that needs more of them.
    """
    depth = _divisor(panel, {4: 64, 6: 32, 8: 128}[bits])
    if m <= 64:
        # Reading the weights takes all the time: narrow tiles keep all multiprocessors busy.
        return GpuTiles(max(16, 1 << (m - 1).bit_length()), 64, depth, 4, 4)
    return GpuTiles(128, 128 if narrow or bits == 6 else 256, depth, 8, 3)


def _divisor(panel: int, most: int) -> int:
    """The largest power of two up to `most` that divides the panel."""
    return min(most, panel & -panel)
