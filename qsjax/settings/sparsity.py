"""Which pairs of tokens are computed."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from qsjax.config import check_choices
from qsjax.errors import InputError

Mask = Literal["svg", "svg-window", "dense", "band", "window", "sta", "radial", "topk", "topp"]
"""svg: the band, in frame-major or token-major order, by head; svg-window: likewise, with windows; static masks; chosen ones."""
FAMILIES: tuple[Mask, ...] = get_args(Mask)
CHOSEN = ("topk", "topp")


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Which pairs of tokens are computed.

    Attributes:
        mask: family: svg and svg-window by head, along frames or through them; topk and topp choose blocks by content.
        density: share of the pairs of video blocks; of topp the most that a list may hold. Text is seen by all, and sees all.
        block: tokens of a block; accelerators want 128 or a multiple. 0 takes 128, or less (64, 32, 16) where a video has not
            even 32 of them.
        tile: tokens of a tile along time, height and width, for all but svg and radial; 1 x 1 x 1 is the model's order.
        mass: of topp: the share of the pooled softmax that a list is to reach.
        sink_frames: the first frames, which all queries see besides.
        profiled_rows: of svg: rows that decide a head's order.
        every_step: of topk and topp: lists are chosen anew in every sparse step; else they stay from refresh to refresh, so that
            what is cached belongs to them.
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
        """With the block size for a video of so many tokens."""
        if self.block:
            return self
        fitting = (block for block in (128, 64, 32) if tokens >= 32 * block)
        return replace(self, block=next(fitting, 16))
