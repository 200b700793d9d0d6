"""The cache that steps pass on together with the latents: the state of the attention slot and of step skipping.

Fields are annotated as arrays, but the same structures also hold shapes and partition specs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from qsjax.dit import Modulation
from qsjax.dit.blocks import Context
from qsjax.residual import LayerState


class Slot(NamedTuple):
    """The attention slot's state, stacked over layers.

    Attributes:
        layer: block lists and residual cache.
        dense: whether a layer is dense in every step, bool [layers]; None if no layer is.
        drift: relative error of the last sparse step's attention, float32 [layers, B]; None where no step is adaptive.
    """

    layer: LayerState
    dense: Array | None = None
    drift: Array | None = None


class Adaptive(NamedTuple):
    """What adaptive steps have decided.

    Attributes:
        count: number of refreshes so far, int32.
        last_step: index of the last refresh, int32.
        last, previous: places of the last two refreshes on the clock of `Residual`, float32.
        refreshed: whether a step was a refresh, bool [steps].
        drift: drift measured in each sparse step, float32 [steps]; 0 for the others.
    """

    count: Array
    last_step: Array
    last: Array
    previous: Array
    refreshed: Array
    drift: Array


class Skipped(NamedTuple):
    """The state of step skipping.

    Attributes:
        seen: the first block's modulated input in the last step, [B, L, C].
        added: what all blocks added to the video tokens in the last computed step, [B, L, C].
        change: rescaled change of the input, summed since the last computed step, float32.
        count: number of steps left out so far, int32.
    """

    seen: Array
    added: Array
    change: Array
    count: Array


class Memory(NamedTuple):
    """The cache of one prompt.

    Attributes:
        slot: a `Slot`, the attention slot's state; () with dense attention.
        skipped: the state of step skipping; None without it.
        adaptive: the state of adaptive steps; None without them.
    """

    slot: Any = ()
    skipped: Skipped | None = None
    adaptive: Adaptive | None = None


Cache = tuple[Memory, Memory]
"""The memories of the prompt and of the negative prompt; the latter is empty if there is no negative prompt."""

Blocks = Callable[[Array, Array, Context, Modulation, Memory], tuple[Array, Memory]]
"""All blocks of a step: (video tokens, text tokens, context, modulation, memory) -> (video tokens, memory)."""
