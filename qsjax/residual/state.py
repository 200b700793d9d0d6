"""The cache of one layer: what a refresh writes and sparse steps read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import Additive, Complement
from qsjax.residual import lowrank
from qsjax.residual.lowrank import Factors
from qsjax.residual.store import Stored, empty, opened, restored, store
from qsjax.settings import Residual
from qsjax.sparse import Choice, Pattern


class LayerState(NamedTuple):
    """A pytree; what the policy has no use for is None. Tensors are in each head's own order of tokens.

    Attributes:
        choice: lists and orders, as decided at the last refresh.
        cached: D or X, which is O_R where the policy does not follow.
        change: D2 or X - X', as `Factors` or whole.
        bend: D2 - D2', likewise.
        lse: lse_R, float32 [B, H, S].
        lse_change: lse_R - lse_R'.
        recall: attention mass on the listed keys at the last refresh, the mean over the video's queries, float32 [B, H].
    """

    choice: Choice
    cached: Any
    change: Any
    bend: Any
    lse: Any
    lse_change: Any
    recall: Any


class Gains(NamedTuple):
    """The numbers of a step, float32 scalars.

    Attributes:
        reach: g: how far this step is from the refresh, in distances of the last two refreshes.
        later: 1 at every refresh but the first, which has no predecessor; else 0.
    """

    reach: Any
    later: Any


def empty_state(
    residual: Residual, pattern: Pattern, batch: int, heads: int, channels: int, dtype: Any
) -> LayerState:
    """Zeros of the right shapes; the first step must be a refresh."""
    rule, tokens = residual.rule, pattern.layouts[0].slots
    shape = (batch, tokens, heads, channels)

    def change(order: int) -> Any:
        if rule.order < order:
            return None
        if residual.rank:
            return lowrank.start(batch, tokens, heads, channels, residual.rank, dtype)
        return empty(residual.store, shape, words=residual.words)

    def zeros(wanted: bool) -> Any:
        return jnp.zeros((batch, heads, tokens), jnp.float32) if wanted else None

    complement = rule.form == "complement"
    return LayerState(
        choice=pattern.empty(batch, heads),
        cached=empty(residual.store, shape, words=residual.words) if rule.order else None,
        change=change(2),
        bend=change(3),
        lse=zeros(complement),
        lse_change=zeros(complement and rule.order > 1),
        recall=jnp.zeros((batch, heads), jnp.float32),
    )


def refreshed(
    residual: Residual,
    state: LayerState,
    choice: Choice,
    value: Float[Array, "B S H D"],
    lse: Float[Array, "B H S"],
    recall: Float[Array, "B H"],
    gains: Gains,
    axis: str | None = None,
) -> LayerState:
    """The state after a refresh.

    Differences are taken only of rows whose lists are those of the refresh before: of other keys they say nothing.

    Args:
        residual: what is kept.
        state: before.
        choice: lists and orders from now on.
        value: D or X, float32.
        lse: lse_R.
        recall: by head.
        gains: of this step.
        axis: of devices that share the heads, inside `jax.shard_map`.
    """
    rule = residual.rule
    if not rule.order:
        return state._replace(choice=choice, recall=recall)
    known = _unchanged(choice, state.choice, lse) * gains.later
    if rule.order > 2:
        # Which rows had a change before is not kept; of a whole head it shows, by zeros.
        known = jnp.broadcast_to(known.min(axis=2, keepdims=True), known.shape)
    by_token = known.swapaxes(1, 2)[..., None]
    change, bend, lse_change = state.change, state.bend, state.lse_change
    if rule.order > 1:
        moved = by_token * (value - restored(state.cached, residual.store))
        if rule.order > 2:
            # The first change has no predecessor: what was kept of it is zero, and so is its bend.
            former = _whole(residual, state.change)
            some = (jnp.abs(former).max(axis=(1, 3), keepdims=True) > 0).astype(jnp.float32)
            bend = _kept(residual, state.bend, some * by_token * (moved - former), axis)
        change = _kept(residual, state.change, moved, axis)
    if lse_change is not None:
        lse_change = known * (lse - state.lse)
    return LayerState(
        choice=choice,
        cached=store(value, residual.store, words=residual.words),
        change=change,
        bend=bend,
        lse=None if state.lse is None else lse,
        lse_change=lse_change,
        recall=recall,
    )


def correction(residual: Residual, state: LayerState, gains: Gains) -> Additive | Complement | None:
    """What the attention kernel adds or merges in a sparse step."""
    rule = residual.rule
    if not rule.order:
        return None
    gain = gains.reach if rule.scaled else jnp.ones((), jnp.float32)
    parts = [part for part in (state.change, state.bend) if part is not None]
    values, low_rank = opened(state.cached, residual.store), None
    if parts and residual.rank:
        u = jnp.concatenate([(gain * p.u.astype(jnp.float32)).astype(p.u.dtype) for p in parts], 1)
        low_rank = (u, jnp.concatenate([p.v.astype(u.dtype) for p in parts], axis=2))
    elif parts:
        whole = restored(state.cached, residual.store)
        for part in parts:
            whole = whole + gain * restored(part, residual.store)
        values = Stored(whole)
    if rule.form == "additive":
        return Additive(values.values, values.scale, low_rank)
    lse = state.lse if state.lse_change is None else state.lse + gain * state.lse_change
    return Complement(values.values, values.scale, lse, low_rank, residual.rule.follow)


def _unchanged(now: Choice, before: Choice, like: Float[Array, "B H S"]) -> Float[Array, "B H S"]:
    """1 for tokens whose block has the list that it had, in a head of the same order."""
    same = jnp.ones(like.shape, jnp.bool_)
    for one, other in zip(now, before, strict=True):
        if one is not None:
            by_row = jnp.atleast_3d(one == other)
            equal = by_row.reshape(*by_row.shape[:3], -1).all(axis=-1)
            same = same & jnp.repeat(equal, like.shape[2] // equal.shape[2], axis=2)
    return same.astype(jnp.float32)


def _kept(residual: Residual, last: Any, x: Float[Array, "B S H D"], axis: str | None) -> Any:
    if not residual.rank:
        return store(x, residual.store, words=residual.words)
    return lowrank.factorize(x, last, axis=axis)


def _whole(residual: Residual, kept: Any) -> Float[Array, "B S H D"]:
    return lowrank.expanded(kept) if isinstance(kept, Factors) else restored(kept, residual.store)


def placed(residual: Residual, state: LayerState) -> LayerState:
    """The state with its tensors where the residual wants them, also with a leading axis; lists stay on the device.

    Inside a program this also says where arguments are, which they do not say by themselves.
    """
    if residual.place == "device":
        return state
    tensors = ("cached", "change", "bend", "lse", "lse_change")
    return state._replace(
        **{name: jax.device_put(getattr(state, name), jax.memory.Space.Host) for name in tensors}
    )


def bytes_of(state: LayerState) -> int:
    """Of a state or its shapes, all arrays counted."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
