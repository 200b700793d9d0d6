"""The residual cache of one layer: what a refresh writes and sparse steps read. `qsjax.settings.residual` has the formulas."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels import Additive, Complement
from qsjax.residual import lowrank
from qsjax.residual.lowrank import Factors
from qsjax.residual.store import Stored, empty, opened, restored, store
from qsjax.settings import Residual
from qsjax.sparse import Choice, Pattern


class LayerState(NamedTuple):
    """A pytree; fields that the policy does not need are None. Tensors are in each head's own order of tokens.

    Attributes:
        choice: lists and orders chosen at the last refresh.
        cached: D or X; X is O_R if the policy's `follow` is 0.
        change: first difference between the last two refreshes, D2 or X - X', as `Factors` or as `Stored`.
        bend: second difference, D2 - D2', likewise.
        lse: lse_R, float32 [B, H, S].
        lse_change: lse_R - lse_R', float32 [B, H, S].
        recall: attention mass on the listed keys at the last refresh, mean over the video's queries, float32 [B, H].
    """

    choice: Choice
    cached: Any
    change: Any
    bend: Any
    lse: Array | None
    lse_change: Array | None
    recall: Array


class Gains(NamedTuple):
    """The cache's numbers of one step, float32 scalars.

    Attributes:
        reach: g, the distance of this step from the last refresh, in units of the distance between the last two refreshes.
        later: 1 at every refresh except the first, which has no predecessor; 0 at all other steps.
    """

    reach: Array
    later: Array


def empty_state(
    residual: Residual, pattern: Pattern, batch: int, heads: int, channels: int, dtype: DTypeLike
) -> LayerState:
    """Zeros of the right shapes; the first step must be a refresh."""
    rule, tokens = residual.rule, pattern.layouts[0].slots
    shape = (batch, tokens, heads, channels)

    def change(order: int) -> Stored | Factors | None:
        if rule.order < order:
            return None
        if residual.rank:
            return lowrank.start(batch, tokens, heads, channels, residual.rank, dtype)
        return empty(residual.store, shape, words=residual.words)

    def zeros(wanted: bool) -> Array | None:
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

    Differences are kept only for rows whose lists did not change: with other lists, the values are about other keys.

    Args:
        residual: what is kept, and how.
        state: the state before the refresh.
        choice: the new lists and orders.
        value: the new D or X, float32.
        lse: the new lse_R.
        recall: the new recall of each head.
        gains: the gains of this step.
        axis: mesh axis of devices that share the heads, inside `jax.shard_map`.
    """
    rule = residual.rule
    if not rule.order:
        return state._replace(choice=choice, recall=recall)
    same = _unchanged(choice, state.choice, lse) * gains.later
    if rule.order > 2:
        # The state does not record which rows had a change before. For a whole head it can be told: its change is all zeros.
        same = jnp.broadcast_to(same.min(axis=2, keepdims=True), same.shape)
    by_token = same.swapaxes(1, 2)[..., None]
    change, bend, lse_change = state.change, state.bend, state.lse_change
    if rule.order > 1:
        moved = by_token * (value - restored(state.cached, residual.store))
        if rule.order > 2:
            # The first change has no predecessor: the stored change is zero, and the bend must be zero too.
            previous = _whole(residual, state.change)
            known = (jnp.abs(previous).max(axis=(1, 3), keepdims=True) > 0).astype(jnp.float32)
            bend = _kept(residual, state.bend, known * by_token * (moved - previous), axis)
        change = _kept(residual, state.change, moved, axis)
    if lse_change is not None:
        assert state.lse is not None  # every policy with lse_change has it
        lse_change = same * (lse - state.lse)
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
    """The correction that the attention kernel applies in a sparse step; None if the policy caches nothing."""
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
    lse = state.lse
    assert lse is not None  # every complement has it
    if state.lse_change is not None:
        lse = lse + gain * state.lse_change
    return Complement(values.values, values.scale, lse, low_rank, residual.rule.follow)


def _unchanged(now: Choice, before: Choice, like: Float[Array, "B H S"]) -> Float[Array, "B H S"]:
    """1 for each token whose block has the same list as before and whose head has the same order, else 0."""
    same = jnp.ones(like.shape, jnp.bool_)
    for new, old in zip(now, before, strict=True):
        if new is not None:
            by_row = jnp.atleast_3d(new == old)
            equal = by_row.reshape(*by_row.shape[:3], -1).all(axis=-1)
            same = same & jnp.repeat(equal, like.shape[2] // equal.shape[2], axis=2)
    return same.astype(jnp.float32)


def _kept(
    residual: Residual,
    last: Stored | Factors | None,
    x: Float[Array, "B S H D"],
    axis: str | None,
) -> Stored | Factors:
    """A difference as it is cached: low-rank factors, started from the last ones, or the whole tensor if rank is 0."""
    if not isinstance(last, Factors):
        return store(x, residual.store, words=residual.words)
    return lowrank.factorize(x, last, axis=axis)


def _whole(residual: Residual, kept: Stored | Factors) -> Float[Array, "B S H D"]:
    return lowrank.expanded(kept) if isinstance(kept, Factors) else restored(kept, residual.store)


def placed(residual: Residual, state: LayerState) -> LayerState:
    """The state with its tensors placed as `residual.place` says; lists stay on the device. Stacked states work too.

    Inside a jitted program this annotates the placement of the arguments, which tracers do not carry by themselves.
    """
    if residual.place == "device":
        return state
    tensors = ("cached", "change", "bend", "lse", "lse_change")
    return state._replace(
        **{name: jax.device_put(getattr(state, name), jax.memory.Space.Host) for name in tensors}
    )


def bytes_of(state: LayerState) -> int:
    """Bytes of all arrays of a state, or of its shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
