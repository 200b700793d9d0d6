"""Density and recall of a run's block lists, head by head."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qsjax.dit import DiTConfig
from qsjax.residual import LayerState
from qsjax.sample.patterns import pattern_for
from qsjax.sample.state import Slot
from qsjax.settings import SparsePlan


class Heads(NamedTuple):
    """Statistics of every head at the last refresh, as means over the samples of a batch; double blocks are the first layers.

    Attributes:
        recall: share of the video queries' attention mass that falls on the listed keys.
        density: share of the pairs of blocks that a sparse step computes, text included.
        second: share of samples that use the second order of tokens (svg); None for masks with a single order.
    """

    recall: Float[np.ndarray, "layers H"]
    density: Float[np.ndarray, "layers H"]
    second: Float[np.ndarray, "layers H"] | None

    def plain(self) -> dict[str, Any]:
        """Plain data for JSON, with the means and the head with the smallest recall."""
        layer, head = np.unravel_index(self.recall.argmin(), self.recall.shape)
        return {
            "recall": round(float(self.recall.mean()), 4),
            "density": round(float(self.density.mean()), 4),
            "least": {"layer": int(layer), "head": int(head), "recall": float(self.recall.min())},
            **{
                f"{name}_by_head": np.round(values, 4).tolist()
                for name, values in self._asdict().items()
                if values is not None
            },
        }


def heads_of(
    plan: SparsePlan, config: DiTConfig, latents: tuple[int, ...], text: int, slot: Slot
) -> Heads:
    """The statistics of a run's heads.

    Args:
        plan: the plan of sparse attention.
        config: sizes of the transformer.
        latents: shape of the latents, [B, C, T, H, W].
        text: tokens of the prompt, padding included.
        slot: state of the attention slot after the last step.
    """
    layer: LayerState = slot.layer
    recall = np.asarray(layer.recall).mean(axis=1)
    pattern = pattern_for(plan, config, latents, text)
    counts = layer.choice.counts
    if counts is None:
        counts = pattern.lists(layer.choice).counts[None]
    listed = np.broadcast_to(np.asarray(counts).sum(axis=-1).mean(axis=1), recall.shape)
    density = pattern.density(listed)
    if plan.dense_layers:
        # Refreshes write lists for these layers too, but no step uses them.
        density, recall = density.copy(), recall.copy()
        density[list(plan.dense_layers)] = recall[list(plan.dense_layers)] = 1.0
    second = layer.choice.second
    return Heads(recall, density, None if second is None else np.asarray(second).mean(axis=1))
