"""Attention for the DiT's attention slot: full attention that refreshes the cache, and sparse attention corrected by it."""

from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels import attention_with_residual, block_sparse_attention
from pallas_kernels.dispatch import AUTO
from qsjax.residual.state import Gains, LayerState, correction, refreshed
from qsjax.residual.tokens import Arranged, Heads, Made
from qsjax.settings import Residual
from qsjax.sparse import Pattern

Out = TypeVar("Out")


def refresh_attention(
    pattern: Pattern,
    residual: Residual,
    gains: Gains,
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    state: LayerState,
    *,
    scores: str = "float",
    implementation: str = AUTO,
    axis: str | None = None,
) -> tuple[Float[Array, "B L H D"], LayerState]:
    """Full attention that chooses new lists and caches what they leave out. It costs as much as one dense pass.

    Args:
        pattern: the sparsity pattern, which makes the lists.
        residual: what is cached, and how.
        gains: the gains of this step.
        q, k, v: one layer's queries, keys and values, video before text.
        kv_valid: which keys are not padding.
        state: the layer's state after the last refresh.
        scores, implementation: passed to `pallas_kernels.block_sparse_attention`.
        axis: mesh axis of devices that share the heads, inside `jax.shard_map`.
    """
    heads = Made(q, k, v, kv_valid)
    return refresh(
        pattern,
        residual,
        gains,
        heads,
        state,
        scores=scores,
        implementation=implementation,
        axis=axis,
    )


def refresh(
    pattern: Pattern,
    residual: Residual,
    gains: Gains,
    heads: Heads[Out],
    state: LayerState,
    *,
    scores: str = "float",
    implementation: str = AUTO,
    axis: str | None = None,
) -> tuple[Out, LayerState]:
    """`refresh_attention` for heads that may not be made yet."""
    choice = heads.choose(pattern)
    tokens = heads.arranged(pattern, choice)
    full = attention_with_residual(
        tokens.video,
        tokens.keys,
        tokens.values,
        pattern.lists(choice),
        kv_valid=tokens.valid,
        scores=scores,
        clears=False,
        implementation=implementation,
    )
    listed, value = full.listed.astype(jnp.float32), full.others.astype(jnp.float32)
    if residual.rule.form == "additive":
        value = (1 - full.recall[..., None]) * (value - listed)
    elif residual.rule.follow:
        value = value - residual.rule.follow * listed
    slot_valid = jnp.asarray(pattern.layouts[0].valid, jnp.float32)[None, :, None]
    value = value * slot_valid[..., None]
    recall = (full.recall * slot_valid).sum(axis=1) / slot_valid.sum(axis=1)
    state = refreshed(residual, state, choice, value, full.others_lse, recall, gains, axis)
    text = _text(pattern, tokens, scores, implementation)
    return heads.restored(pattern, choice, full.out, text), state


def sparse_attention(
    pattern: Pattern,
    residual: Residual,
    gains: Gains,
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    state: LayerState,
    *,
    scores: str = "float",
    implementation: str = AUTO,
) -> tuple[Float[Array, "B L H D"], LayerState]:
    """Attention over the lists of the last refresh, corrected by the cache; the state is returned unchanged.

    The arguments are those of `refresh_attention`.
    """
    heads = Made(q, k, v, kv_valid)
    return sparse(
        pattern, residual, gains, heads, state, scores=scores, implementation=implementation
    )


def sparse(
    pattern: Pattern,
    residual: Residual,
    gains: Gains,
    heads: Heads[Out],
    state: LayerState,
    *,
    scores: str = "float",
    implementation: str = AUTO,
) -> tuple[Out, LayerState]:
    """`sparse_attention` for heads that may not be made yet."""
    choice = heads.choose(pattern) if pattern.config.every_step else state.choice
    tokens = heads.arranged(pattern, choice)
    out = block_sparse_attention(
        tokens.video,
        tokens.keys,
        tokens.values,
        pattern.lists(choice),
        kv_valid=tokens.valid,
        cache=correction(residual, state, gains),
        scores=scores,
        clears=False,
        implementation=implementation,
    )
    assert not isinstance(out, tuple)
    text = _text(pattern, tokens, scores, implementation)
    return heads.restored(pattern, choice, out, text), state


def _text(
    pattern: Pattern, tokens: Arranged, scores: str, implementation: str
) -> Float[Array, "B T H D"]:
    """The output of the text's queries, which see all keys."""
    rows = block_sparse_attention(
        tokens.text,
        tokens.keys,
        tokens.values,
        pattern.text_lists(),
        kv_valid=tokens.valid,
        scores=scores,
        clears=False,
        implementation=implementation,
    )
    assert not isinstance(rows, tuple)
    return rows
