"""What the lists of a run hold, head by head: how much of attention they compute, and how much of its mass that is."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qsjax.dit import DiTConfig
from qsjax.residual import LayerState
from qsjax.sample.patterns import pattern_for
from qsjax.sample.state import Slot
from qsjax.settings import SparsePlan


class Heads(NamedTuple):
    """Of every head of every layer at the last refresh, the mean over a batch's samples; layers count double blocks first.

    Attributes:
        recall: attention mass of the video's queries on the listed keys.
        density: pairs of blocks that a sparse step computes, text included, over all.
        second: how many samples took the second order of tokens (svg); None where there is one order.
    """

    recall: Float[np.ndarray, "layers H"]
    density: Float[np.ndarray, "layers H"]
    second: Float[np.ndarray, "layers H"] | None

    def plain(self) -> dict[str, Any]:
        """As plain data, with the means and the head that recalls least."""
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
    """The heads of a run.

    Args:
        plan: of it.
        config: of the transformer.
        latents: shape [B, C, T, H, W].
        text: tokens of the prompt, padding included.
        slot: after its last step.
    """
    layer: LayerState = slot.layer
    recall = np.asarray(layer.recall).mean(axis=1)
    pattern = pattern_for(plan, config, latents, text)
    counts = layer.choice.counts
    if counts is None:
        counts = pattern.lists(layer.choice).counts[None]
    listed = np.broadcast_to(np.asarray(counts).sum(axis=-1).mean(axis=1), recall.shape)
    video, rows = pattern.layouts[0].blocks, pattern.text_blocks
    density = (listed + rows * (video + rows)) / (video + rows) ** 2
    if plan.dense_layers:
        # Their lists are written at refreshes, and used by none.
        density, recall = density.copy(), recall.copy()
        density[list(plan.dense_layers)] = recall[list(plan.dense_layers)] = 1.0
    second = layer.choice.second
    return Heads(recall, density, None if second is None else np.asarray(second).mean(axis=1))
