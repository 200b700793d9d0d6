"""The pattern of a run: its mask family at the video's size."""

from functools import lru_cache

from qsjax.dit import DiTConfig
from qsjax.settings import SparsePlan
from qsjax.sparse import Pattern, Sparsity
from qsjax.sparse.layout import Sizes


def token_grid(config: DiTConfig, latents: tuple[int, ...]) -> Sizes:
    """Video tokens along time, height and width.

    Args:
        config: of the patches.
        latents: shape [B, C, T, H, W].
    """
    frames, height, width = (
        n // patch for n, patch in zip(latents[2:], config.patch_size, strict=True)
    )
    return frames, height, width


def pattern_for(
    plan: SparsePlan, config: DiTConfig, latents: tuple[int, ...], text: int
) -> Pattern:
    """The pattern at a size.

    Args:
        plan: of the mask.
        config: of the patches.
        latents: shape [B, C, T, H, W].
        text: tokens of the prompt, padding included.
    """
    return _pattern(plan.sparsity, token_grid(config, latents), text)


@lru_cache(maxsize=8)
def _pattern(sparsity: Sparsity, grid: Sizes, text: int) -> Pattern:
    """Kept: a run asks for its pattern in every trace, and a memory plan for every change that it tries."""
    return Pattern(sparsity, grid, text)
