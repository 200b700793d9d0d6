"""The body of the TPU kernel: one head, one block of queries, a loop over its list."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.block_sparse_attention.cache import EMPTY
from pallas_kernels.block_sparse_attention.softmax import INITIAL_MAX, LOG2_E
from pallas_kernels.refs import AsyncCopy, Index, Ref
from pallas_kernels.tpu_params import LANES


@dataclass(frozen=True, kw_only=True)
class TpuKernelConfig:
    """What is fixed when the kernel is compiled.

    Attributes:
        names: of the kernel's arrays: inputs, outputs, scratch memory.
        block_kv: keys in a block.
        gather: listed blocks that a step multiplies.
        scale: of the scores.
        trips: number of steps, for a static estimate; None takes it from the list.
        complement: the cache is a `Complement`.
        follow: the complement's share of O_S.
    """

    names: tuple[str, ...]
    block_kv: int
    gather: int
    scale: float
    trips: int | None
    complement: bool
    follow: float


def kernel(*refs: Ref, config: TpuKernelConfig) -> None:
    """Attend to the listed blocks, apply the cache, store.

    Args:
        refs: the arrays that `config` names. Those in square brackets are there only in some calls.

            lists: SMEM [1, 1 + K], the count, then the list.
            q: [block_q, D].
            k, v: [B, H, L, D], all of them, in HBM.
            bias: float32 [key blocks, block_kv], 0 or `EMPTY`.
            [q_scale, k_scale]: of int8 queries and keys, float32 [1, block_q] and [key blocks, block_kv].
            [values, scale, cached_lse, u_factor, v_factor]: of the cache.
            out: [block_q, D].
            lse: float32 [1, block_q].
            [executed]: SMEM [1, 1], the number of listed blocks that were multiplied.
            k_buffer, v_buffer: [2, gather block_kv, D], two slots.
            m, l: running maxima and sums of the softmax, float32 [block_q, LANES].
            acc: running output, not yet divided by the sums, float32 [block_q, D].
            semaphores: of the copies, [2, 2].
        config: what is fixed.
    """
    ref = dict(zip(config.names, refs, strict=True))
    sample, head = pl.program_id(0), pl.program_id(1)
    count = ref["lists"][0, 0]
    always, int8 = config.trips is not None, "q_scale" in ref
    # Not `pl.cdiv`: it needs a sign, for which Mosaic asks about the local chip, and there may be none.
    steps = (
        jax.lax.div(count + (config.gather - 1), config.gather)
        if config.trips is None
        else config.trips
    )

    def listed(step: Index, place: int) -> Array:
        return ref["lists"][0, 1 + step * config.gather + place]

    def copies(step: Index, slot: Index) -> list[AsyncCopy]:
        return [
            pltpu.make_async_copy(
                ref[name].at[
                    sample, head, pl.ds(listed(step, place) * config.block_kv, config.block_kv)
                ],
                ref[f"{name}_buffer"].at[slot, pl.ds(place * config.block_kv, config.block_kv)],
                ref["semaphores"].at[which, slot],
            )
            for place in range(config.gather)
            for which, name in enumerate(("k", "v"))
        ]

    def fetch(step: Index, slot: Index) -> None:
        for copy in copies(step, slot):
            copy.start()

    m, l, acc = ref["m"], ref["l"], ref["acc"]
    m[...] = jnp.full(m.shape, INITIAL_MAX, jnp.float32)
    l[...] = jnp.zeros(l.shape, jnp.float32)
    acc[...] = jnp.zeros(acc.shape, jnp.float32)
    _when(steps > 0, always)(lambda: fetch(0, 0))

    def step_body(step: Array, executed: Array) -> Array:
        slot = jax.lax.rem(step, 2)
        # With `always` the last step fetches, too: block 0 again.
        _when(step + 1 < steps, always)(
            lambda: fetch(jnp.where(step + 1 < steps, step + 1, 0), 1 - slot)
        )
        left = count - step * config.gather
        rows = [pl.ds(listed(step, place), 1) for place in range(config.gather)]
        bias = [
            jnp.where(place < left, ref["bias"][row], jnp.float32(EMPTY))
            for place, row in enumerate(rows)
        ]
        for copy in copies(step, slot):
            copy.wait()
        scores = jax.lax.dot_general(
            ref["q"][...], ref["k_buffer"][slot], (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.int32 if int8 else jnp.float32,
        )  # fmt: skip
        if int8:
            by_key = jnp.concatenate([ref["k_scale"][row] for row in rows], axis=1)
            by_query = _over_lanes(ref["q_scale"][...].reshape(-1, 1), scores.shape[1])
            scores = scores.astype(jnp.float32) * by_query * by_key
        scores = scores * (config.scale * LOG2_E) + jnp.concatenate(bias, axis=1)
        _accumulate(scores, ref["v_buffer"][slot], m, l, acc)
        return executed + jnp.minimum(left, config.gather)

    executed = jax.lax.fori_loop(0, steps, step_body, jnp.int32(0))
    if "executed" in ref:
        ref["executed"][0, 0] = executed
    some = l[...] > 0
    sums = jnp.where(some, l[...], 1.0)
    lse = jnp.where(some, m[...] / LOG2_E + jnp.log(sums), EMPTY)
    out = acc[...] / _repeat(sums, acc.shape[1])
    ref["lse"][...] = lse.T[:1]
    if "values" in ref:
        out = _apply(out, lse, ref, config)
    ref["out"][...] = out.astype(ref["out"].dtype)


def _when(condition: bool | Array, always: bool) -> Callable[[Callable[[], None]], None]:
    return (lambda body: body()) if always else pl.when(condition)


def _accumulate(
    scores: Float[Array, "Q N"], v: Float[Array, "N D"], m: Ref, l: Ref, acc: Ref
) -> None:
    """One step of the online softmax, in powers of two.

    Maxima and sums fill all lanes with copies: Mosaic turns a [rows, 1] array into as many registers, one lane used.
    """
    m_old = m[...]
    m_new = jnp.maximum(m_old, _over_lanes(scores.max(axis=1, keepdims=True), LANES))
    alpha = jnp.exp2(m_old - m_new)
    p = jnp.exp2(scores - _repeat(m_new, scores.shape[1]))
    pv = jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    acc[...] = acc[...] * _repeat(alpha, v.shape[1]) + pv
    l[...] = l[...] * alpha + _over_lanes(p.sum(axis=1, keepdims=True), LANES)
    m[...] = m_new


def _over_lanes(column: Float[Array, "Q 1"], lanes: int) -> Float[Array, "Q N"]:
    return jnp.broadcast_to(column, (column.shape[0], lanes))


def _repeat(x: Array, lanes: int) -> Array:
    return jnp.concatenate([x] * (lanes // LANES), axis=1)


def _apply(
    out: Float[Array, "Q D"],
    lse: Float[Array, "Q 128"],
    ref: dict[str, Ref],
    config: TpuKernelConfig,
) -> Float[Array, "Q D"]:
    """Put back what the list leaves out, as `cache.py` defines it."""
    cached = ref["values"][...].astype(jnp.float32)
    if "scale" in ref:
        cached = cached * ref["scale"][...].reshape(-1, 1)
    cached_lse = ref["cached_lse"][...].reshape(-1, 1) if config.complement else None
    if "u_factor" in ref:
        u, v = (ref[name][...].astype(jnp.float32) for name in ("u_factor", "v_factor"))
        cached = cached + jax.lax.dot_general(
            u, v, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
    if cached_lse is None:
        return out + cached
    weight = jax.nn.sigmoid(lse - _over_lanes(cached_lse, LANES))
    weight = _repeat(weight, out.shape[1])
    return weight * out + (1 - weight) * (cached + config.follow * out)
