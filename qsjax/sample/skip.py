"""Steps that are left out: while the first block's input has hardly changed, what the blocks added last is added again.

TeaCache (arXiv 2411.19108, section 3.3): the relative change of that input from step to step, through a polynomial that makes it the
change of the output, adds up; a step is computed when the sum reaches a threshold, and the sum starts anew.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.dit import DiT, Modulation
from qsjax.dit.blocks import Attention
from qsjax.dit.norms import modulate
from qsjax.errors import InputError
from qsjax.text import EncodedPrompt

_SMALLEST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Skip:
    """When a step is left out.

    Attributes:
        threshold: of the summed change; 0 leaves out none. TeaCache takes 0.1 and 0.15 for HunyuanVideo.
        coefficients: of the polynomial, highest power first; none is the change itself.
    """

    threshold: float = 0.0
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < np.inf or not np.isfinite(self.coefficients).all():
            raise InputError(
                f"skip threshold {self.threshold}, coefficients {list(self.coefficients)}: a threshold is 0 (off) or more, all"
                " are finite"
            )


class Skipped(NamedTuple):
    """What is known of the steps before; one for each prompt.

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


def nothing_skipped(dit: DiT, batch: int, tokens: int) -> Skipped:
    """Before the first step.

    Args:
        dit: of the sizes and the dtype.
        batch: samples.
        tokens: of the video.
    """
    zeros = jnp.zeros((batch, tokens, dit.config.hidden_size), dit.dtype)
    return Skipped(zeros, zeros, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def may_skip(kinds: tuple[str, ...], always: tuple[str, ...]) -> np.ndarray:
    """Which steps may be left out, bool [steps]: not the first, not the last, and none of the kinds that others build on."""
    allowed = np.asarray([kind not in always for kind in kinds])
    allowed[[0, -1]] = False
    return allowed


def skipping_forward(
    skip: Skip,
    allowed: Array,
    dit: DiT,
    latents: Float[Array, "B C T H W"],
    timestep: Float[Array, " B"],
    prompt: EncodedPrompt,
    row: Modulation,
    attention: Attention | None,
    slot: Any,
    before: Skipped,
    *,
    writes: bool = False,
    axis: str | None = None,
) -> tuple[Float[Array, "B C T H W"], Any, Skipped]:
    """The velocity, computed or not, and the states of the attention slot and of this.

    A batch is left out as a whole: where every one of its samples would be.

    Args:
        skip: when.
        allowed: whether this step may be, bool.
        dit, latents, timestep, prompt: of the model's call.
        row: this step's modulation.
        attention, slot: of the attention slot.
        before: of the step before.
        writes: whether the slot's state changes; then the step is computed.
        axis: of devices that share the tokens; they decide alike.
    """
    img, txt, context = dit.embed(
        latents, timestep, prompt.text, prompt.mask, attention=attention, axis=axis
    )
    shift, scale = jnp.split(row.img[0], 6, axis=-1)[:2]
    seen = modulate(img, shift, scale)
    change = before.change + _rescaled(skip, _relative_change(seen, before.seen, axis))

    def computed() -> tuple[Array, Array, Any]:
        out, later = dit.through_blocks(img, txt, context, row, slot)
        return out, out - img, later

    if writes:
        leave_out = jnp.zeros((), jnp.bool_)
        out, added, slot = computed()
    else:
        leave_out = allowed & (change < skip.threshold)
        out, added = jax.lax.cond(
            leave_out, lambda: (img + before.added, before.added), lambda: computed()[:2]
        )
    change = jnp.where(leave_out, change, 0.0)
    after = Skipped(seen, added, change, before.count + leave_out.astype(jnp.int32))
    return dit.velocity(out, row, latents, axis=axis), slot, after


def _relative_change(now: Array, before: Array, axis: str | None) -> Float[Array, ""]:
    """Mean absolute difference over mean absolute value, the largest of the batch."""
    now, before = now.astype(jnp.float32), before.astype(jnp.float32)
    means = jnp.stack([jnp.abs(x).mean(axis=(1, 2)) for x in (now - before, before)])
    if axis is not None:
        means = jax.lax.pmean(means, axis)
    moved, size = means
    return (moved / jnp.maximum(size, _SMALLEST)).max()


def _rescaled(skip: Skip, change: Float[Array, ""]) -> Float[Array, ""]:
    if not skip.coefficients:
        return change
    return jnp.polyval(jnp.asarray(skip.coefficients, jnp.float32), change)
