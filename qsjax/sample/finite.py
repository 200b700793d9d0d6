"""Where numbers stop being numbers: whether latents are finite, and which layer of a step is the first whose are not."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qsjax.dit import DiT, Modulation
from qsjax.dit.blocks import Context
from qsjax.errors import NotFiniteError
from qsjax.sample.state import Memory
from qsjax.sample.step import Conditions, Step, euler_step
from qsjax.settings import SamplingPlan

_AT_ONCE = 1 << 24
"""Numbers that are looked at in one go: the flags of a whole video would take a quarter of its memory."""
_SEEN = ("before its attention", "in its attention")


def all_finite(x: Float[Array, "..."]) -> Bool[Array, ""]:
    """Whether no number is a NaN or an infinity."""
    return jnp.isfinite(x).all()


def require_finite(values: np.ndarray, what: str, cure: str) -> None:
    """Check that no number is a NaN or an infinity.

    Args:
        values: floats.
        what, cure: for the message.

    Raises:
        NotFiniteError: says how many are.
    """
    flat = values.reshape(-1)
    parts = (flat[start : start + _AT_ONCE] for start in range(0, flat.size, _AT_ONCE))
    wrong = sum(int(np.count_nonzero(~np.isfinite(part))) for part in parts)
    if wrong:
        raise NotFiniteError(
            f"{what} hold {wrong:,} of {flat.size:,} numbers that are not finite; {cure}"
        )


def first_broken_layer(
    plan: SamplingPlan,
    dit: DiT,
    latents: Float[Array, "B C T H W"],
    step: Step,
    conditions: Conditions,
) -> str:
    """Run a step again, with dense attention, and say where the first number is not finite.

    Args:
        plan: the sampling plan.
        dit: the transformer, on one device.
        latents: before the step.
        step: the numbers of the step.
        conditions: the result of `prepare`.

    Returns:
        A few words for a message: "in its attention of double block 3, with the prompt".
    """
    if not np.isfinite(np.asarray(latents)).all():
        return "in the latents before it"
    run = jax.jit(partial(_watched_step, plan.dense))
    after, watched = run(dit, latents, step, conditions)
    for flags, whose in zip(watched, ("the prompt", "the negative prompt"), strict=True):
        broken = np.argwhere(~np.asarray(flags))
        if len(broken):
            layer, place = broken[0]
            doubles = dit.config.num_double_blocks
            block = (
                f"double block {layer}" if layer < doubles else f"single block {layer - doubles}"
            )
            return f"{_SEEN[place]} of {block}, with {whose}"
    if np.isfinite(np.asarray(after)).all():
        return "in what a sparse step or a refresh does beside dense attention, which gives finite numbers"
    return "after the last block's attention"


def _watched_step(
    plan: SamplingPlan, dit: DiT, latents: Array, step: Step, conditions: Conditions
) -> tuple[Array, tuple[Array, Array]]:
    """Latents after a dense step, and for prompt and negative prompt the flags [layers, 2] of its attention."""
    start = Memory(slot=jnp.ones((dit.config.num_blocks, 2), bool))

    def blocks(
        img: Array, txt: Array, context: Context, row: Modulation, memory: Memory
    ) -> tuple[Array, Memory]:
        img, flags = dit.through_blocks(img, txt, context, row, memory.slot)
        return img, memory._replace(slot=flags)

    def attention(q: Array, k: Array, v: Array, kv_valid: Array, state: Any) -> tuple[Array, Any]:
        out, _ = dit.dense_attention(q, k, v, kv_valid, ())
        # Padding of the text may hold anything; it is masked.
        seen = jnp.where(kv_valid[:, :, None, None], jnp.stack([q, k, v]), 0)
        return out, state.at[0].set(all_finite(seen)).at[1].set(
            all_finite(jnp.where(kv_valid[:, :, None, None], out, 0))
        )

    after, memories = euler_step(
        plan, dit, latents, step, conditions, (start, start), blocks=blocks, attention=attention
    )
    cond, uncond = memories
    return after, (cond.slot, uncond.slot)
