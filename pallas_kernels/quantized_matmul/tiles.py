"""Tile sizes of the TPU matmul kernel: from a table of the compiler's estimates, else as large as memory allows."""

import itertools
from dataclasses import dataclass

from pallas_kernels.tpu_params import LANES

_INT8_ROWS = 32  # of a TPU's int8 tile
_VMEM = 56 * 2**20  # bytes of a TPU core's vector memory that one kernel may plan for


@dataclass(frozen=True)
class Tiles:
    """Rows m and columns n of a tile of the result, and the bytes k of a weight column that a step reads."""

    m: int
    n: int
    k: int


# (target, parts, panel, n) -> tiles that take fewer cycles than those of the rule below, by `qsjax bench kernels`.
TABLE = {("v6e", 2, 1536, 12288): Tiles(2048, 1024, 1536)}


def tpu_tiles(m: int, n: int, panel: int, parts: int, target: str = "") -> Tiles:
    """Tiles for M rows of activations against `parts` panels of K, each of `panel` rows.

    Args:
        m, n: of the result (m of one group of rows).
        panel: K / parts.
        parts: values of K that share a byte: 1, 2 or 4.
        target: name of the device.

    Raises:
        ValueError: nothing fits.
    """
    known = TABLE.get((target, parts, panel, n))
    if known is not None and m >= known.m:
        return known
    rows = min(1024, -(-m // _INT8_ROWS) * _INT8_ROWS)
    depths = [k for k in range(panel, 0, -1) if panel % k == 0 and (k % LANES == 0 or k == panel)]
    # All of K at once needs no accumulator in memory; a step costs some 600 cycles, which large tiles hide.
    for depth, widest in itertools.product(depths, (1024, 512)):
        tiles = Tiles(rows, min(widest, -(-n // LANES) * LANES), depth)
        if tpu_bytes(tiles, parts) <= _VMEM:
            return tiles
    raise ValueError(f"no tiles of {parts} panels of {panel} rows fit {_VMEM} bytes")


def tpu_bytes(tiles: Tiles, parts: int) -> int:
    """Vector memory of the TPU kernel: operands and result twice (one in flight), int32 sums, float32 epilogue."""
    operands = tiles.k * (tiles.m * parts + 2 * tiles.n)
    floats = tiles.m * tiles.n * 4
    return 2 * (operands + 2 * floats) + 2 * floats
