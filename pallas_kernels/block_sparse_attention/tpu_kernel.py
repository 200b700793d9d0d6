"""The body of the TPU kernel: one head, one block of queries, a loop over its list."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.block_sparse_attention.cache import EMPTY
from pallas_kernels.block_sparse_attention.softmax import LOG2_E, LOWEST_PEAK
from pallas_kernels.tpu_params import LANES


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is fixed when the kernel is compiled.

    Attributes:
        block_kv: keys in a block.
        gather: listed blocks that a step multiplies.
        scale: of the scores.
        trips: steps to run whatever the list says, for a static estimate; None obeys the list.
        count_blocks: write down how many listed blocks were multiplied.
        int8: queries and keys are, and have scales.
        cached: there is a cache to apply.
        complement: it is a `Complement`, else an `Additive`.
        follow: the complement's share of O_S.
        quantized: its values are int8 with a scale.
        low_rank: it has factors.
    """

    block_kv: int
    gather: int
    scale: float
    trips: int | None
    count_blocks: bool
    int8: bool
    cached: bool
    complement: bool
    follow: float
    quantized: bool
    low_rank: bool


def kernel(lists: Any, q: Any, k_hbm: Any, v_hbm: Any, bias: Any, *refs: Any, form: Form) -> None:
    """Attend to the listed blocks, apply the cache, store.

    Args:
        lists: SMEM [1, 1 + K]: the count, then the list.
        q: [block_q, D].
        k_hbm, v_hbm: [B, H, L, D], all of them, in HBM.
        bias: float32 [key blocks, block_kv], 0 or `EMPTY`.
        refs: scales of int8 queries and keys, the cache's arrays, the outputs (out, lse, and the counter if asked for), then buffers of two slots
            for keys and values, running maxima and sums [block_q, LANES], the running output, and semaphores.
        form: what is fixed.
    """
    *given, k_buffer, v_buffer, peak, total, mixed, semaphores = refs
    counters = [given.pop()] if form.count_blocks else []
    *given, out, lse = given
    q_scale, k_scale = given[:2] if form.int8 else (None, None)
    cache = given[2:] if form.int8 else given
    sample, head = pl.program_id(0), pl.program_id(1)
    count = lists[0, 0]
    always = form.trips is not None
    # `pl.cdiv` asks for signs, and Mosaic then for the chip at hand, which deviceless compiles lack.
    steps: Any = form.trips if always else jax.lax.div(count + (form.gather - 1), form.gather)

    def listed(step: Any, place: int) -> Any:
        return lists[0, 1 + step * form.gather + place]

    def copies(step: Any, slot: Any) -> list[Any]:
        pairs = ((k_hbm, k_buffer), (v_hbm, v_buffer))
        return [
            pltpu.make_async_copy(
                hbm.at[sample, head, pl.ds(listed(step, place) * form.block_kv, form.block_kv)],
                buffer.at[slot, pl.ds(place * form.block_kv, form.block_kv)],
                semaphores.at[which, slot],
            )
            for place in range(form.gather)
            for which, (hbm, buffer) in enumerate(pairs)
        ]

    def fetch(step: Any, slot: Any) -> None:
        for copy in copies(step, slot):
            copy.start()

    peak[...] = jnp.full(peak.shape, LOWEST_PEAK, jnp.float32)
    total[...] = jnp.zeros(total.shape, jnp.float32)
    mixed[...] = jnp.zeros(mixed.shape, jnp.float32)
    _when(steps > 0, always)(lambda: fetch(0, 0))

    def step_body(step: Any, multiplied: Any) -> Any:
        slot = jax.lax.rem(step, 2)
        # The estimate fetches block 0 once more than there are steps.
        _when(step + 1 < steps, always)(
            lambda: fetch(jnp.where(step + 1 < steps, step + 1, 0), 1 - slot)
        )
        left = count - step * form.gather
        rows = [pl.ds(listed(step, place), 1) for place in range(form.gather)]
        seen = [
            jnp.where(place < left, bias[row], jnp.float32(EMPTY)) for place, row in enumerate(rows)
        ]
        for copy in copies(step, slot):
            copy.wait()
        kind = jnp.int32 if form.int8 else jnp.float32
        scores = jax.lax.dot_general(
            q[...], k_buffer[slot], (((1,), (1,)), ((), ())), preferred_element_type=kind
        )
        if q_scale is not None and k_scale is not None:
            by_key = jnp.concatenate([k_scale[row] for row in rows], axis=1)
            by_query = _over_lanes(q_scale[...].reshape(-1, 1), scores.shape[1])
            scores = scores.astype(jnp.float32) * by_query * by_key
        scores = scores * (form.scale * LOG2_E) + jnp.concatenate(seen, axis=1)
        _accumulate(scores, v_buffer[slot], peak, total, mixed)
        return multiplied + jnp.minimum(left, form.gather)

    multiplied = jax.lax.fori_loop(0, steps, step_body, jnp.int32(0))
    for counter in counters:
        counter[0, 0] = multiplied
    some = total[...] > 0
    sums = jnp.where(some, total[...], 1.0)
    log_sum = jnp.where(some, peak[...] / LOG2_E + jnp.log(sums), EMPTY)
    result = mixed[...] / _repeat(sums, mixed.shape[1])
    lse[...] = log_sum.T[:1]
    if form.cached:
        result = _apply(result, log_sum, cache, form)
    out[...] = result.astype(out.dtype)


def _when(condition: Any, always: bool) -> Any:
    return (lambda body: body()) if always else pl.when(condition)


def _accumulate(scores: Array, v: Array, peak: Any, total: Any, mixed: Any) -> None:
    """One step of the online softmax, in powers of two.

    Maxima and sums fill all lanes with copies: Mosaic turns a [rows, 1] array into as many registers, one lane used.
    """
    before = peak[...]
    higher = jnp.maximum(before, _over_lanes(scores.max(axis=1, keepdims=True), LANES))
    shrink = jnp.exp2(before - higher)
    weights = jnp.exp2(scores - _repeat(higher, scores.shape[1]))
    more = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    mixed[...] = mixed[...] * _repeat(shrink, v.shape[1]) + more
    total[...] = total[...] * shrink + _over_lanes(weights.sum(axis=1, keepdims=True), LANES)
    peak[...] = higher


def _over_lanes(column: Array, lanes: int) -> Array:
    return jnp.broadcast_to(column, (column.shape[0], lanes))


def _repeat(x: Array, lanes: int) -> Array:
    return jnp.concatenate([x] * (lanes // LANES), axis=1)


def _apply(result: Array, log_sum: Array, refs: list[Any], form: Form) -> Array:
    """Put back what the list leaves out, as `cache.py` defines it."""
    refs = list(refs)
    cached = refs.pop(0)[...].astype(jnp.float32)
    if form.quantized:
        cached = cached * refs.pop(0)[...].reshape(-1, 1)
    cached_log_sum = refs.pop(0)[...].reshape(-1, 1) if form.complement else None
    if form.low_rank:
        u, v = (ref[...].astype(jnp.float32) for ref in refs)
        cached = cached + jax.lax.dot_general(
            u, v, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
    if cached_log_sum is None:
        return result + cached
    weight = jax.nn.sigmoid(log_sum - _over_lanes(cached_log_sum, LANES))
    weight = _repeat(weight, result.shape[1])
    return weight * result + (1 - weight) * (cached + form.follow * result)
