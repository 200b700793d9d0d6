"""The GPU kernel itself: one tile of queries of one head, a loop over its list, online softmax in powers of two."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from pallas_kernels.block_sparse_attention.cache import EMPTY
from pallas_kernels.block_sparse_attention.softmax import INITIAL_MAX, LOG2_E
from pallas_kernels.gpu_params import inside, load, store
from pallas_kernels.refs import Ref


@dataclass(frozen=True, kw_only=True)
class GpuKernelConfig:
    """What is fixed when the kernel is compiled.

    Attributes:
        names: of the kernel's arrays: inputs, outputs.
        queries, keys: of a sample; the last tiles may exceed them.
        tile_q: queries of a program.
        tile_kv: keys of a step of its loop.
        parts: steps that a listed block takes.
        scale: of the scores.
        complement: the cache is a `Complement`.
        follow: its share of O_S.
    """

    names: tuple[str, ...]
    queries: int
    keys: int
    tile_q: int
    tile_kv: int
    parts: int
    scale: float
    complement: bool
    follow: float


def kernel(*refs: Ref, config: GpuKernelConfig) -> None:
    """Attend to the listed blocks, apply the cache, store.

    Args:
        refs: the arrays that `config` names. Those in square brackets are there only in some calls.

            counts: int32 [1], blocks in the list.
            indices: int32 [K], the list.
            q: [tile_q, D].
            k, v: [L, D], all of the sample and head.
            bias: float32 [L], padded to whole blocks, 0 or `EMPTY`.
            [q_scale, k_scale]: of int8 queries and keys, float32 [tile_q] and [L], padded.
            [values, scale, cached_lse, u_factor, v_factor]: of the cache.
            out: [tile_q, D].
            lse: float32 [tile_q].
            [executed]: int32 [1], the number of steps.
        config: what is fixed.
    """
    ref = dict(zip(config.names, refs, strict=True))
    rows = inside(pl.program_id(0) * config.tile_q, config.tile_q, config.queries)
    q = load(ref["q"], rows=rows)
    int8 = "q_scale" in ref
    q_scale = load(ref["q_scale"], columns=rows)[:, None] if int8 else None

    def step(
        index: Array, state: tuple[Array, Array, Array, Array]
    ) -> tuple[Array, Array, Array, Array]:
        m, l, acc, executed = state
        block = ref["indices"][jax.lax.div(index, config.parts)]
        start = (block * config.parts + jax.lax.rem(index, config.parts)) * config.tile_kv
        span = pl.ds(start, config.tile_kv)
        # Places past the last key read it again; their bias masks them.
        places = (
            jnp.minimum(start + jnp.arange(config.tile_kv), config.keys - 1)
            if config.keys % config.tile_kv
            else span
        )
        k, v = ref["k"][places, :], ref["v"][places, :]
        kind = jnp.int32 if int8 else jnp.float32
        scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=kind)
        if q_scale is not None:
            k_scale = ref["k_scale"][span]
            scores = scores.astype(jnp.float32) * q_scale * k_scale[None]
        bias = ref["bias"][span]
        scores = scores * (config.scale * LOG2_E) + bias[None]
        m_new = jnp.maximum(m, scores.max(axis=1))
        alpha, p = jnp.exp2(m - m_new), jnp.exp2(scores - m_new[:, None])
        pv = jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
        l = l * alpha + p.sum(axis=1)
        return m_new, l, acc * alpha[:, None] + pv, executed + 1

    start = (
        jnp.full(config.tile_q, INITIAL_MAX, jnp.float32),
        jnp.zeros(config.tile_q, jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
        jnp.int32(0),
    )
    steps = ref["counts"][0] * config.parts
    m, l, acc, executed = jax.lax.fori_loop(0, steps, step, start)
    some = l > 0
    l = jnp.where(some, l, 1.0)
    lse = jnp.where(some, m / LOG2_E + jnp.log(l), EMPTY)
    out = acc / l[:, None]
    if "values" in ref:
        out = _apply(out, lse, ref, config, rows)
    store(ref["out"], out, rows=rows)
    store(ref["lse"], lse, columns=rows)
    if "executed" in ref:
        ref["executed"][0] = executed


def _apply(
    out: Float[Array, "Q D"],
    lse: Float[Array, " Q"],
    ref: dict[str, Ref],
    config: GpuKernelConfig,
    rows: Bool[Array, " Q"] | None,
) -> Float[Array, "Q D"]:
    """Put back what the list leaves out, as `cache.py` defines it."""
    cached = load(ref["values"], rows=rows).astype(jnp.float32)
    if "scale" in ref:
        cached = cached * load(ref["scale"], columns=rows)[:, None]
    if "u_factor" in ref:
        u, v = load(ref["u_factor"], columns=rows), load(ref["v_factor"])
        cached = cached + jax.lax.dot_general(
            u, v, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
    if not config.complement:
        return out + cached
    weight = jax.nn.sigmoid(lse - load(ref["cached_lse"], columns=rows))[:, None]
    return weight * out + (1 - weight) * (cached + config.follow * out)
