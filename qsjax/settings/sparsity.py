"""Which pairs of tokens are computed."""

import math
from dataclasses import InitVar, dataclass, replace
from typing import Annotated, Literal, get_args

from qsjax.config import check_choices
from qsjax.errors import InputError
from qsjax.untrusted import Between, check_bounds

Mask = Literal[
    "svg", "svg-window", "dense", "band", "window", "sta", "radial", "box", "topk", "topp"
]
"""svg: a band in frame-major or token-major order, chosen for each head; svg-window: likewise, with windows. dense to box are
static masks; topk and topp choose blocks by content."""
FAMILIES: tuple[Mask, ...] = get_args(Mask)
CHOSEN = ("topk", "topp")
_Tokens = Between(0, 1 << 16)
_TPU_ROWS = 512, 384, 256
"""Queries of a block on a TPU, largest first: its matrix unit wants many rows."""


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Which pairs of tokens are computed.

    Attributes:
        mask: mask family: svg and svg-window choose an order for each head, within frames or across them; topk and topp choose
            blocks by content.
        density: share of the video's pairs of tokens that is computed, padding included; for topp an upper bound. Text sees all
            tokens, and all tokens see text.
        block_q: queries of a block, which share a list; a TPU needs 128 or a multiple. 0 takes 512 on a TPU for a video of 8,192
            tokens or more, else as many as block_kv.
        block_kv: keys of a block, which are computed or left out together; a TPU needs 128 or a multiple. 0 takes 128, or less
            (64, 32, 16) for a video of fewer than 32 such blocks.
        tile: tokens of a tile along time, height and width, for all but svg and radial; 1 x 1 x 1 is the model's order, for box a
            box of block_q tokens that fits the video. In tiles of box, topk and topp, blocks of fewer keys than queries are boxes too.
        mass: for topp, the share of the pooled softmax that a list must reach.
        sink_frames: number of first frames that all queries see in addition.
        profiled_rows: for svg, the number of rows that decide a head's order.
        every_step: for topk and topp, choose new lists in every sparse step; else lists stay from refresh to refresh, and match
            what is cached.

    `block` is an old spelling: it sets block_q and block_kv.
    """

    mask: Mask = "svg"
    density: float = 0.15
    block_q: Annotated[int, _Tokens] = 0
    block_kv: Annotated[int, _Tokens] = 0
    tile: tuple[Annotated[int, _Tokens], Annotated[int, _Tokens], Annotated[int, _Tokens]] = (
        1,
        1,
        1,
    )
    mass: float = 0.9
    sink_frames: Annotated[int, _Tokens] = 0
    profiled_rows: Annotated[int, Between(0, 4096)] = 64
    every_step: bool = False
    block: InitVar[int] = 0

    def __post_init__(self, block: int) -> None:
        check_choices(self)
        if block:
            object.__setattr__(self, "block_q", block)
            object.__setattr__(self, "block_kv", block)
        if not 0 < self.density <= 1 or not 0 < self.mass <= 1:
            raise InputError(
                f"density={self.density}, mass={self.mass}: both are shares above 0, up to 1"
            )
        if (
            min(*self.tile, self.profiled_rows) < 1
            or min(self.block_q, self.block_kv, self.sink_frames) < 0
        ):
            raise InputError(
                f"tile={self.tile}, profiled_rows={self.profiled_rows} must be 1 or more, block_q={self.block_q},"
                f" block_kv={self.block_kv}, sink_frames={self.sink_frames} 0 or more"
            )
        check_bounds(self)
        if self.mask.startswith(("svg", "radial")) and self.tile != (1, 1, 1):
            raise InputError(f"tile={self.tile}: {self.mask} has orders of its own; leave it out")
        if self.every_step and self.mask not in CHOSEN:
            raise InputError(
                f"every_step: the lists of {self.mask} do not change; it is for {' and '.join(CHOSEN)}"
            )
        if self.mask.startswith("svg") and self.sink_frames:
            raise InputError(
                f"sink_frames={self.sink_frames}: in the token-major order of {self.mask} every block has a token of the first"
                " frames; take band, window, sta or topk"
            )

    def sized(self, tokens: int, backend: str = "cpu") -> "Sparsity":
        """The same with `block_q` and `block_kv` set.

        Args:
            tokens: of the video.
            backend: of the device that computes attention: "tpu", or another.
        """
        fitting = (block for block in (128, 64, 32) if tokens >= 32 * block)
        block_kv = self.block_kv or next(fitting, 16)
        block_q = self.block_q or block_kv
        if not self.block_q and backend == "tpu" and tokens >= 16 * _TPU_ROWS[0]:
            # The tiles of sta and box are made of whole blocks.
            tiled = self.mask == "sta" or (self.mask == "box" and self.tile != (1, 1, 1))
            whole = math.prod(self.tile) if tiled else _TPU_ROWS[0]
            block_q = next((rows for rows in _TPU_ROWS if whole % rows == 0), block_kv)
        return replace(self, block_q=block_q, block_kv=block_kv)
