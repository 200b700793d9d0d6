"""Two orders of a video's tokens: frame by frame, which is the model's, and position by position, all frames of each.

A head of a video model attends to neighbours in its frame, or to one place in all frames; blocks of keys are compact in one of
the two orders (Sparse VideoGen, arXiv:2502.01776, section 4.1).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

_ROWS = 1024
# Copies begin at tiles of memory, which have 8 rows; a tile of bfloat16 registers has 16.
_TILE, _REGISTER = 8, 16


def reordered(
    x: Shaped[Array, "B H N D"], second: Bool[Array, "B H"], frames: int, *, back: bool = False
) -> Shaped[Array, "B H N D"]:
    """From frame by frame to position by position, for the heads that want it; `back` is the inverse."""
    sizes = (-1, frames) if back else (frames, -1)
    other = x.reshape(*x.shape[:2], *sizes, x.shape[3]).swapaxes(2, 3).reshape(x.shape)
    return jnp.where(second[..., None, None], other, x)


@dataclass(frozen=True)
class Strips:
    """How a kernel walks through a video in both orders: `width` positions in all frames make a block.

    In the second order a block is contiguous; in the first it is a strip in each frame. The last block begins earlier, so that it
    is whole, too: it repeats what the one before it did.

    Attributes:
        frames: T.
        positions: tokens of a frame.
    """

    frames: int
    positions: int

    @property
    def width(self) -> int:
        """Positions of a block; about a thousand rows are enough for one copy to run while another is used."""
        return _REGISTER * max(1, _ROWS // (self.frames * _REGISTER))

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.frames * self.width

    @property
    def blocks(self) -> int:
        """Blocks of a video."""
        return -(-self.positions // self.width)

    @property
    def repeated(self) -> int:
        """Positions that the last two blocks share."""
        return self.blocks * self.width - self.positions

    def objection(self) -> str | None:
        """Why a kernel cannot walk like this."""
        if self.positions % _TILE or self.positions < self.width:
            return f"frames of {self.positions} tokens are not whole tiles of {_TILE}, at least {self.width} tokens"
        return None


def strips_of(tokens: int, frames: int) -> Strips | None:
    """The strips of a video; None if no head has a second order (`frames` is 0)."""
    return Strips(frames, tokens // frames) if frames else None
