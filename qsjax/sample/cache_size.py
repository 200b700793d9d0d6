"""The size of the sparse-attention cache, and the most exact store that fits a budget."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from qsjax.dit import DiTConfig
from qsjax.errors import InputError
from qsjax.residual import bytes_of, empty_state
from qsjax.sample.patterns import pattern_for
from qsjax.settings import SamplingPlan


def cache_bytes(config: DiTConfig, plan: SamplingPlan, latents: tuple[int, ...], text: int) -> int:
    """Bytes of the lists and the residual cache of all layers and prompts, factors in bfloat16; 0 with dense attention.

    Only shapes are computed; nothing is allocated.

    Args:
        config: sizes of the transformer.
        plan: the sampling plan.
        latents: shape of the latents, [B, C, T, H, W].
        text: tokens of each prompt, padding included.
    """
    sparse = plan.sparse
    if sparse is None:
        return 0
    pattern = pattern_for(sparse, config, latents, text)
    layer = jax.eval_shape(
        lambda: empty_state(
            sparse.residual, pattern, latents[0], config.num_heads, config.head_dim, jnp.bfloat16
        )
    )
    return (2 if plan.uses_negative else 1) * config.num_blocks * bytes_of(layer)


def within_budget(
    config: DiTConfig, plan: SamplingPlan, latents: tuple[int, ...], text: int
) -> SamplingPlan:
    """The plan with the most exact store whose cache fits `residual.budget`; unchanged without a budget.

    Raises:
        InputError: even the 4-bit store is larger than the budget; the message says by how much.
    """
    sparse = plan.sparse
    if sparse is None or not sparse.residual.budget:
        return plan
    sizes = {}
    for store in ("float32", "bfloat16", "int8", "int4"):
        residual = replace(sparse.residual, store=store, budget=0)
        candidate = replace(plan, sparse=replace(sparse, residual=residual))
        sizes[store] = cache_bytes(config, candidate, latents, text)
        if sizes[store] <= sparse.residual.budget:
            return candidate
    raise InputError(
        f"a residual cache of at most {sparse.residual.budget:,} bytes was asked for, but even in 4 bits this video's takes"
        f" {sizes['int4']:,}: raise residual.budget, or take residual.policy none"
    )
