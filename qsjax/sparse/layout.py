"""Orders of video tokens, chosen so that the tokens of a block are close to each other in the video.

The model's order is frame by frame, row by row. A layout divides the video into tiles and makes each tile contiguous. Four
cases are useful. Tiles of one token give the model's own order (frame-major). Tiles of one position in all frames give the
token-major order. Boxes keep neighbours in space and time together; boxes made of smaller boxes (cells) do so for large blocks of
queries and for the smaller blocks of keys in them.
"""

from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from qsjax.errors import InputError

Sizes = tuple[int, int, int]
_NESTED = (0, 3, 6, 1, 4, 7, 2, 5, 8)
"""From (tiles, cells, tokens) along each of three axes to all tiles, all cells of a tile, all tokens of a cell."""


@dataclass(frozen=True)
class Layout:
    """An order of the tokens of a video, padded to whole tiles; queries and keys are padded to whole blocks of their own.

    Attributes:
        grid: tokens along time, height and width.
        tile: tokens of a tile along the same axes; the order of the tiles is frame by frame, row by row.
        block_q: queries in a block of the sequence.
        block_kv: keys in a block; 0 takes as many as `block_q`.
        cell: tokens of a cell, of which a tile is made; None is the tile.
    """

    grid: Sizes
    tile: Sizes = (1, 1, 1)
    block_q: int = 128
    block_kv: int = 0
    cell: Sizes | None = None

    def __post_init__(self) -> None:
        if not self.block_kv:
            object.__setattr__(self, "block_kv", self.block_q)
        if self.cell and any(t % c for t, c in zip(self.tile, self.cell, strict=True)):
            raise InputError(f"tiles of {self.tile} tokens are not made of cells of {self.cell}")
        if min(*self.grid, *self.tile, self.block_q, self.block_kv) < 1:
            raise InputError(
                f"grid {self.grid}, tile {self.tile}, blocks of {self.block_q} x {self.block_kv}: all sizes must be 1 or more"
            )

    @classmethod
    def frame_major(cls, grid: Sizes, block_q: int, block_kv: int = 0) -> "Layout":
        """The model's own order."""
        return cls(grid, (1, 1, 1), block_q, block_kv)

    @classmethod
    def token_major(cls, grid: Sizes, block_q: int, block_kv: int = 0) -> "Layout":
        """All frames of one position, then the next position."""
        return cls(grid, (grid[0], 1, 1), block_q, block_kv)

    @cached_property
    def tokens(self) -> int:
        """Number of tokens in the video."""
        return int(np.prod(self.grid))

    @cached_property
    def tiles(self) -> Sizes:
        """Number of tiles along time, height and width; the last ones may be partial."""
        t, h, w = (-(-size // tile) for size, tile in zip(self.grid, self.tile, strict=True))
        return t, h, w

    @cached_property
    def cells(self) -> Sizes:
        """Number of cells of a tile along time, height and width."""
        t, h, w = (t // c for t, c in zip(self.tile, self.cell or self.tile, strict=True))
        return t, h, w

    @cached_property
    def q_blocks(self) -> int:
        """Blocks of queries in the sequence."""
        return -(-self._placed // self.block_q)

    @cached_property
    def kv_blocks(self) -> int:
        """Blocks of keys in the sequence."""
        return -(-self._placed // self.block_kv)

    @cached_property
    def slots(self) -> int:
        """Length of the sequence of queries, padding included."""
        return self.q_blocks * self.block_q

    @cached_property
    def kv_slots(self) -> int:
        """Length of the sequence of keys, padding included."""
        return self.kv_blocks * self.block_kv

    @cached_property
    def pairs(self) -> int:
        """Pairs of blocks that the video fills, whatever the padding of its tiles: a density is a share of these."""
        return -(-self.tokens // self.block_q) * -(-self.tokens // self.block_kv)

    @cached_property
    def order(self) -> np.ndarray:
        """Token of every slot of the queries, int32 [slots]; -1 is padding."""
        return self._padded(self.slots)

    @cached_property
    def kv_order(self) -> np.ndarray:
        """Token of every slot of the keys, int32 [kv_slots]; -1 is padding."""
        return self._padded(self.kv_slots)

    @cached_property
    def valid(self) -> np.ndarray:
        """Which slots of the queries hold a token, bool [slots]."""
        return self.order >= 0

    @cached_property
    def kv_valid(self) -> np.ndarray:
        """Which slots of the keys hold a token, bool [kv_slots]."""
        return self.kv_order >= 0

    @cached_property
    def filled(self) -> np.ndarray:
        """Pairs of blocks of which both hold a token, bool [q_blocks, kv_blocks]; the others need not be computed."""
        rows = np.any(self.valid.reshape(self.q_blocks, -1), axis=1, keepdims=True)
        columns = np.any(self.kv_valid.reshape(self.kv_blocks, -1), axis=1, keepdims=True)
        return rows & columns.T

    @cached_property
    def _placed(self) -> int:
        """Slots of whole tiles."""
        return int(np.prod(self.tiles) * np.prod(self.tile))

    @cached_property
    def _parts(self) -> tuple[tuple[int, int, int], ...]:
        """Along each axis: tiles, cells of a tile, tokens of a cell."""
        sizes = zip(self.tiles, self.cells, self.tile, strict=True)
        return tuple((tiles, cells, tile // cells) for tiles, cells, tile in sizes)

    def _padded(self, slots: int) -> np.ndarray:
        count, tile = self.tiles, self.tile
        padding = [(0, n * t - size) for n, t, size in zip(count, tile, self.grid, strict=True)]
        index = np.arange(self.tokens, dtype=np.int32).reshape(self.grid)
        index = np.pad(index, padding, constant_values=-1)
        index = index.reshape(sum(self._parts, ())).transpose(_NESTED).reshape(-1)
        return np.pad(index, (0, slots - len(index)), constant_values=-1)

    def arrange(
        self, x: Shaped[Array, "B N ..."], slots: int | None = None
    ) -> Shaped[Array, "B S ..."]:
        """Reorder from the model's order to this one; padding is 0. Only slices and transpositions: a gather would be slow.

        Args:
            x: the video's tokens.
            slots: length of the result; None is that of the queries.
        """
        slots = self.slots if slots is None else slots
        rest = x.shape[2:]
        flat = [(0, 0)] * len(rest)
        if self.tile != (1, 1, 1):
            x = x.reshape(-1, *self.grid, *rest)
            padding = [
                (0, n * t - size)
                for n, t, size in zip(self.tiles, self.tile, self.grid, strict=True)
            ]
            x = jnp.pad(x, [(0, 0), *padding, *flat])
            x = x.reshape(-1, *sum(self._parts, ()), *rest)
            x = x.transpose(0, *(axis + 1 for axis in _NESTED), *range(10, x.ndim))
            x = x.reshape(x.shape[0], -1, *rest)
        return jnp.pad(x, [(0, 0), (0, slots - x.shape[1]), *flat])

    def restore(self, x: Shaped[Array, "B S ..."]) -> Shaped[Array, "B N ..."]:
        """Inverse of `arrange`."""
        rest = x.shape[2:]
        if self.tile == (1, 1, 1):
            return x[:, : self.tokens]
        x = x[:, : self._placed]
        tiles, cells, tokens = zip(*self._parts, strict=True)
        x = x.reshape(-1, *tiles, *cells, *tokens, *rest)
        # The permutation is its own inverse: it transposes a table of three levels by three axes.
        x = x.transpose(0, *(axis + 1 for axis in _NESTED), *range(10, x.ndim))
        padded = [n * t for n, t in zip(self.tiles, self.tile, strict=True)]
        t, h, w = self.grid
        return x.reshape(-1, *padded, *rest)[:, :t, :h, :w].reshape(-1, self.tokens, *rest)
