"""Choices that change how much memory a run takes, but not what it computes."""

from typing import Literal, get_args

ModulationWeights = Literal["resident", "released"]
"""Where the modulation weights, a quarter of HunyuanVideo's, are while steps run: in memory, or only on disk."""
MODULATION_WEIGHTS: tuple[ModulationWeights, ...] = get_args(ModulationWeights)
