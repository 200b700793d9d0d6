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
    """

    layer: LayerState
    dense: Array | None = None


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
    """

    slot: Any = ()
    skipped: Skipped | None = None


Cache = tuple[Memory, Memory]
"""The memories of the prompt and of the negative prompt; the latter is empty if there is no negative prompt."""

Blocks = Callable[[Array, Array, Context, Modulation, Memory], tuple[Array, Memory]]
"""All blocks of a step: (video tokens, text tokens, context, modulation, memory) -> (video tokens, memory)."""
