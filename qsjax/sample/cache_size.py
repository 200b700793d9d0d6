"""How large the cache of sparse attention is, and the most exact store that keeps to a budget."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from qsjax.dit import DiTConfig
from qsjax.errors import InputError
from qsjax.residual import bytes_of, empty_state
from qsjax.sample.patterns import pattern_for
from qsjax.settings import SamplingPlan


def cache_bytes(config: DiTConfig, plan: SamplingPlan, latents: tuple[int, ...], text: int) -> int:
    """Of lists and residual cache of all layers and prompts, with factors in bfloat16; nothing is allocated.

    Args:
        config: of the transformer.
        plan: of the run; 0 where its attention is dense.
        latents: shape [B, C, T, H, W].
        text: tokens of each prompt, padding included.
    """
    sparse = plan.sparse
    if sparse is None:
        return 0
    pattern = pattern_for(sparse, config, latents, text)
    one = jax.eval_shape(
        lambda: empty_state(
            sparse.residual, pattern, latents[0], config.num_heads, config.head_dim, jnp.bfloat16
        )
    )
    return (2 if plan.uses_negative else 1) * config.num_blocks * bytes_of(one)


def within_budget(
    config: DiTConfig, plan: SamplingPlan, latents: tuple[int, ...], text: int
) -> SamplingPlan:
    """The plan with the most exact store whose cache keeps to the residual's budget; unchanged without a budget.

    Raises:
        InputError: not even 4 bits do; says how much they take.
    """
    sparse = plan.sparse
    if sparse is None or not sparse.residual.budget:
        return plan
    sizes = {}
    for store in ("float32", "bfloat16", "int8", "int4"):
        residual = replace(sparse.residual, store=store, budget=0)
        made = replace(plan, sparse=replace(sparse, residual=residual))
        sizes[store] = cache_bytes(config, made, latents, text)
        if sizes[store] <= sparse.residual.budget:
            return made
    raise InputError(
        f"a residual cache of {sparse.residual.budget:,} bytes is asked for; in 4 bits this video's takes {sizes['int4']:,}: give it"
        " more, or take residual policy none"
    )
