"""Step skipping: while the first block's input has hardly changed, a step adds again what the blocks added last.

TeaCache (arXiv 2411.19108, section 3.3). The relative change of that input from step to step is rescaled by a polynomial, which
predicts the change of the output, and summed. When the sum reaches a threshold, the step is computed and the sum is reset.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.dit import DiT, Modulation
from qsjax.dit.blocks import Context
from qsjax.dit.norms import modulate
from qsjax.sample.state import Blocks, Memory, Skipped
from qsjax.settings import Skip

_SMALLEST = 1e-12


def nothing_skipped(dit: DiT, batch: int, tokens: int) -> Skipped:
    """The state before the first step.

    Args:
        dit: gives hidden size and dtype.
        batch: number of samples.
        tokens: number of video tokens.
    """
    zeros = jnp.zeros((batch, tokens, dit.config.hidden_size), dit.dtype)
    return Skipped(zeros, zeros, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def may_skip(kinds: tuple[str, ...], always: tuple[str, ...]) -> np.ndarray:
    """Which steps may be left out, bool [steps]: neither the first nor the last, nor any whose kind is in `always`."""
    allowed = np.asarray([kind not in always for kind in kinds])
    allowed[[0, -1]] = False
    return allowed


def skipping(
    blocks: Blocks, skip: Skip, allowed: Array, *, writes: bool = False, axis: str | None = None
) -> Blocks:
    """The blocks of a step, computed or skipped.

    A batch is skipped as a whole, only if each of its samples would be.

    Args:
        blocks: the blocks of the step.
        skip: the rule for skipping.
        allowed: whether this step may be skipped, bool.
        writes: whether the step writes the attention slot's state; then it is always computed.
        axis: mesh axis of devices that share the tokens; all decide alike.
    """

    def computed_or_not(
        img: Array, txt: Array, context: Context, row: Modulation, memory: Memory
    ) -> tuple[Array, Memory]:
        before = memory.skipped
        assert before is not None  # `empty_cache` makes it where steps may be skipped
        shift, scale = jnp.split(row.img[0], 6, axis=-1)[:2]
        seen = modulate(img, shift, scale)
        change = before.change + _rescaled(skip, _relative_change(seen, before.seen, axis))

        def computed() -> tuple[Array, Array, Memory]:
            out, later = blocks(img, txt, context, row, memory)
            return out, out - img, later

        if writes:
            leave_out = jnp.zeros((), jnp.bool_)
            out, added, memory = computed()
        else:
            leave_out = allowed & (change < skip.threshold)
            out, added = jax.lax.cond(
                leave_out, lambda: (img + before.added, before.added), lambda: computed()[:2]
            )
        change = jnp.where(leave_out, change, 0.0)
        count = before.count + leave_out.astype(jnp.int32)
        return out, memory._replace(skipped=Skipped(seen, added, change, count))

    return computed_or_not


def _relative_change(now: Array, before: Array, axis: str | None) -> Float[Array, ""]:
    """Mean absolute difference divided by the mean absolute value before; the largest of the batch."""
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
