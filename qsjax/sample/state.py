"""What steps hand each other besides latents: the state of the attention slot, and what is known of steps that are left out."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from qsjax.dit import Modulation
from qsjax.dit.blocks import Context
from qsjax.residual import LayerState


class Slot(NamedTuple):
    """The attention slot's state, stacked over layers.

    Attributes:
        layer: lists and cache.
        dense: whether a layer is dense in every step, bool; None where none is.
    """

    layer: LayerState
    dense: Any = None


class Skipped(NamedTuple):
    """What is known of the steps before, where steps may be left out.

    Attributes:
        seen: the first block's modulated input in the last step, [B, N, D].
        added: by all blocks in the last step that was computed, [B, N, D].
        change: summed since then, float32.
        count: of steps left out so far, int32.
    """

    seen: Any
    added: Any
    change: Any
    count: Any


class Memory(NamedTuple):
    """What a step hands the next one, of one prompt.

    Attributes:
        slot: the attention slot's state; () where there is none.
        skipped: of steps that are left out; None where none are.
    """

    slot: Any = ()
    skipped: Skipped | None = None


Cache = tuple[Memory, Memory]
"""Of the prompt and of the negative prompt; an empty one without it."""

Blocks = Callable[[Array, Array, Context, Modulation, Memory], tuple[Array, Memory]]
"""All blocks of a step: (video tokens, text tokens, context, modulation, memory) -> (video tokens, memory)."""
