"""The sparsity pattern of a run: a mask family at the video's size."""

import math
from functools import lru_cache

from pallas_kernels import targets
from qsjax.dit import DiTConfig
from qsjax.settings import SparsePlan
from qsjax.sparse import Pattern, Sparsity
from qsjax.sparse.layout import Sizes


def token_grid(config: DiTConfig, latents: tuple[int, ...]) -> Sizes:
    """Number of video tokens along time, height and width.

    Args:
        config: gives the patch size.
        latents: shape of the latents, [B, C, T, H, W].
    """
    frames, height, width = (
        n // patch for n, patch in zip(latents[2:], config.patch_size, strict=True)
    )
    return frames, height, width


def pattern_for(
    plan: SparsePlan, config: DiTConfig, latents: tuple[int, ...], text: int
) -> Pattern:
    """The pattern for a size of video and text, on the current target (`pallas_kernels.targets`).

    Args:
        plan: the plan of sparse attention, which names the mask.
        config: gives the patch size.
        latents: shape of the latents, [B, C, T, H, W].
        text: tokens of the prompt, padding included.
    """
    grid = token_grid(config, latents)
    # The target decides sizes of blocks: they must be part of the key.
    sparsity = plan.sparsity.sized(math.prod(grid), targets.current().backend)
    return _pattern(sparsity, grid, text)


@lru_cache(maxsize=8)
def _pattern(sparsity: Sparsity, grid: Sizes, text: int) -> Pattern:
    """Cached, because every trace of a run needs the pattern, and a memory plan tries many variants of a run."""
    return Pattern(sparsity, grid, text)
