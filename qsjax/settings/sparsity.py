"""Which pairs of tokens are computed."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from qsjax.config import check_choices
from qsjax.errors import InputError

Mask = Literal["svg", "svg-window", "dense", "band", "window", "sta", "radial", "topk", "topp"]
"""svg: a band in frame-major or token-major order, chosen for each head; svg-window: likewise, with windows. dense to radial are
static masks; topk and topp choose blocks by content."""
FAMILIES: tuple[Mask, ...] = get_args(Mask)
CHOSEN = ("topk", "topp")


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Which pairs of tokens are computed.

    Attributes:
        mask: mask family: svg and svg-window choose an order for each head, within frames or across them; topk and topp choose
            blocks by content.
        density: share of the pairs of video blocks; for topp an upper bound. Text sees all tokens, and all tokens see text.
        block: tokens of a block; accelerators need 128 or a multiple. 0 takes 128, or less (64, 32, 16) for a video of fewer than
            32 such blocks.
        tile: tokens of a tile along time, height and width, for all but svg and radial; 1 x 1 x 1 is the model's order.
        mass: for topp, the share of the pooled softmax that a list must reach.
        sink_frames: number of first frames that all queries see in addition.
        profiled_rows: for svg, the number of rows that decide a head's order.
        every_step: for topk and topp, choose new lists in every sparse step; else lists stay from refresh to refresh, and match
            what is cached.
    """

    mask: Mask = "svg"
    density: float = 0.15
    block: int = 0
    tile: tuple[int, int, int] = (1, 1, 1)
    mass: float = 0.9
    sink_frames: int = 0
    profiled_rows: int = 64
    every_step: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.density <= 1 or not 0 < self.mass <= 1:
            raise InputError(
                f"density={self.density}, mass={self.mass}: both are shares above 0, up to 1"
            )
        if min(*self.tile, self.profiled_rows) < 1 or min(self.block, self.sink_frames) < 0:
            raise InputError(
                f"tile={self.tile}, profiled_rows={self.profiled_rows} must be 1 or more, block={self.block},"
                f" sink_frames={self.sink_frames} 0 or more"
            )
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

    def sized(self, tokens: int) -> "Sparsity":
        """The same with `block` set for a video of this many tokens."""
        if self.block:
            return self
        fitting = (block for block in (128, 64, 32) if tokens >= 32 * block)
        return replace(self, block=next(fitting, 16))
