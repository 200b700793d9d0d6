"""Attention for the DiT's attention slot: full attention that refreshes the cache, and sparse attention corrected by it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels import attention_with_residual, block_sparse_attention
from pallas_kernels.dispatch import AUTO
from qsjax.residual.state import Gains, LayerState, correction, refreshed
from qsjax.settings import Residual
from qsjax.sparse import Choice, Pattern


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
    choice = pattern.choose(q, k, v, kv_valid)
    tokens = _arranged(pattern, choice, q, k, v, kv_valid)
    full = attention_with_residual(
        tokens.video,
        tokens.keys,
        tokens.values,
        pattern.lists(choice),
        kv_valid=tokens.valid,
        scores=scores,
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
    out = _with_text(full.out, pattern, choice, tokens, scores, implementation)
    return out, state


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
    choice = pattern.choose(q, k, v, kv_valid) if pattern.config.every_step else state.choice
    tokens = _arranged(pattern, choice, q, k, v, kv_valid)
    out = block_sparse_attention(
        tokens.video,
        tokens.keys,
        tokens.values,
        pattern.lists(choice),
        kv_valid=tokens.valid,
        cache=correction(residual, state, gains),
        scores=scores,
        implementation=implementation,
    )
    assert not isinstance(out, tuple)
    return _with_text(out, pattern, choice, tokens, scores, implementation), state


class _Arranged(NamedTuple):
    """Tokens in the order of the lists; the text, which follows the video, keeps its order.

    Attributes:
        video: queries of the video.
        keys, values: of video and text.
        valid: keys that may be seen.
        text: queries of the text.
    """

    video: Float[Array, "B S H D"]
    keys: Float[Array, "B K H D"]
    values: Float[Array, "B K H D"]
    valid: Bool[Array, "B K"]
    text: Float[Array, "B T H D"]


def _arranged(
    pattern: Pattern, choice: Choice, q: Array, k: Array, v: Array, kv_valid: Array
) -> _Arranged:
    """Orders are made with heads before tokens, as kernels want them: the kernel's first transposition undoes the last one here,
    and the compiler leaves out both."""
    orders, second = pattern.orders, choice.second
    video = orders.queries(q.swapaxes(1, 2), second)
    keys, values = (orders.keys(x.swapaxes(1, 2), second) for x in (k, v))
    video, keys, values = (x.swapaxes(1, 2) for x in (video, keys, values))
    text = q[:, pattern.layouts[0].tokens :]
    return _Arranged(video, keys, values, orders.valid(kv_valid), text)


def _with_text(
    video: Float[Array, "B S H D"],
    pattern: Pattern,
    choice: Choice,
    tokens: _Arranged,
    scores: str,
    implementation: str,
) -> Float[Array, "B L H D"]:
    """The video's output back in the model's order, followed by the text's, whose queries see all keys."""
    rows = block_sparse_attention(
        tokens.text,
        tokens.keys,
        tokens.values,
        pattern.text_lists(),
        kv_valid=tokens.valid,
        scores=scores,
        implementation=implementation,
    )
    assert not isinstance(rows, tuple)
    video, rows = (x.swapaxes(1, 2) for x in (video, rows))
    return pattern.orders.restore(video, rows, choice.second).swapaxes(1, 2)
