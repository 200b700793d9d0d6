"""The GPU kernel itself: one tile of queries of one head, a loop over its list, online softmax in powers of two."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from pallas_kernels.block_sparse_attention.cache import EMPTY
from pallas_kernels.block_sparse_attention.softmax import LOG2_E, LOWEST_PEAK
from pallas_kernels.gpu_params import inside, load, store


@dataclass(frozen=True)
class Form:
    """What is fixed when the kernel is built.

    Attributes:
        names: of the arrays, inputs first.
        queries, keys: there are, that is, what the last tiles may exceed.
        tile_q, tile_kv: of a program, and of a step of its loop.
        parts: steps a listed block takes.
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


def kernel(*refs: Any, form: Form) -> None:
    """Attend to the listed blocks, apply the cache, store; `refs` are the arrays that `form` names."""
    ref = dict(zip(form.names, refs, strict=True))
    rows = inside(pl.program_id(0) * form.tile_q, form.tile_q, form.queries)
    q = load(ref["q"], rows=rows)
    int8 = "q_scale" in ref
    q_scale = load(ref["q_scale"], columns=rows)[:, None] if int8 else None

    def step(index: Any, state: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        peak, total, mixed, executed = state
        block = ref["indices"][jax.lax.div(index, form.parts)]
        start = (block * form.parts + jax.lax.rem(index, form.parts)) * form.tile_kv
        places: Any = pl.ds(start, form.tile_kv)
        if form.keys % form.tile_kv:
            # Past the last key the last one is read again; its bias there says that it is not to be seen.
            places = jnp.minimum(start + jnp.arange(form.tile_kv), form.keys - 1)
        k, v = ref["k"][places, :], ref["v"][places, :]
        kind = jnp.int32 if int8 else jnp.float32
        scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=kind)
        if q_scale is not None:
            k_scale = ref["k_scale"][pl.ds(start, form.tile_kv)]
            scores = scores.astype(jnp.float32) * q_scale * k_scale[None]
        bias = ref["bias"][pl.ds(start, form.tile_kv)]
        scores = scores * (form.scale * LOG2_E) + bias[None]
        higher = jnp.maximum(peak, scores.max(axis=1))
        shrink, weights = jnp.exp2(peak - higher), jnp.exp2(scores - higher[:, None])
        more = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        total = total * shrink + weights.sum(axis=1)
        return higher, total, mixed * shrink[:, None] + more, executed + 1

    start = (
        jnp.full(form.tile_q, LOWEST_PEAK, jnp.float32),
        jnp.zeros(form.tile_q, jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
        jnp.int32(0),
    )
    steps = ref["counts"][0] * form.parts
    peak, total, mixed, executed = jax.lax.fori_loop(0, steps, step, start)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    lse = jnp.where(some, peak / LOG2_E + jnp.log(total), EMPTY)
    out = mixed / total[:, None]
    if "values" in ref:
        out = _apply(out, lse, ref, form, rows)
    store(ref["out"], out, rows=rows)
    store(ref["lse"], lse, columns=rows)
    if "executed" in ref:
        ref["executed"][0] = executed


def _apply(out: Array, lse: Array, ref: dict[str, Any], form: Form, rows: Array | None) -> Array:
    """Put back what the list leaves out, as `cache.py` defines it."""
    cached = load(ref["values"], rows=rows).astype(jnp.float32)
    if "scale" in ref:
        cached = cached * load(ref["scale"], columns=rows)[:, None]
    if "u_factor" in ref:
        u, v = load(ref["u_factor"], columns=rows), load(ref["v_factor"])
        cached = cached + jax.lax.dot_general(
            u, v, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
    if not form.complement:
        return out + cached
    weight = jax.nn.sigmoid(lse - load(ref["cached_lse"], columns=rows))[:, None]
    return weight * out + (1 - weight) * (cached + form.follow * out)
