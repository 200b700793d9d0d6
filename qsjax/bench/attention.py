"""Block-sparse attention on the CPU, side by side with the fastest dense attention that XLA has there."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels import BlockLists, block_sparse_attention
from pallas_kernels.block_sparse_attention import reference
from pallas_kernels.block_sparse_attention.bench import AttentionCase
from qsjax.bench.timing import alternating
from qsjax.dit.attention import dense_attention, masked_attention


def against_dense(case: AttentionCase, *, pairs: int) -> dict[str, Any]:
    """Time the sparse call, its lists built in every call, and the dense forms, in turns; the fastest dense form counts.

    Args:
        case: uniform lists on the CPU.
        pairs: how many times each runs, after one warm-up.

    Returns:
        Median seconds of both and their ratio, which dense form it was, and the largest difference of the first head
        from the reference.
    """
    q, k, v, lists = case.operands()
    block_map = lists.block_map()
    longest = lists.indices.shape[-1]
    sparse = jax.jit(partial(_sparse, case=case, longest=longest))
    forms = {name: partial(jax.jit(form), q, k, v) for name, form in _DENSE.items()}
    times = alternating({"sparse": partial(sparse, q, k, v, block_map), **forms}, pairs=pairs)
    best = min(_DENSE, key=times.__getitem__)
    head = sparse(q, k, v, block_map)[:, :, :1]
    expected = _one_head(case, q[:, :, :1], k[:, :, :1], v[:, :, :1], block_map[:, :1])
    return {
        "measured_seconds": times["sparse"],
        "dense_seconds": times[best],
        "dense_form": best,
        "speedup_over_dense": times[best] / times["sparse"],
        "max_difference": float(jnp.abs(head - expected).max()),
    }


def _sparse(
    q: Array, k: Array, v: Array, block_map: Array, *, case: AttentionCase, longest: int
) -> Array:
    lists = BlockLists.from_block_map(
        block_map, block_q=case.block_q, block_kv=case.block_kv, longest=longest
    )
    return jnp.asarray(block_sparse_attention(q, k, v, lists, implementation="xla"))


def _one_head(case: AttentionCase, q: Array, k: Array, v: Array, block_map: Array) -> np.ndarray:
    lists = BlockLists.from_block_map(block_map, block_q=case.block_q, block_kv=case.block_kv)
    valid = jnp.ones(k.shape[:2], jnp.bool_)
    scale = case.head_dim**-0.5
    return np.asarray(reference.attend(q, k, v, valid, lists, None, scale=scale)[0])


def _by_head(
    q: Float[Array, "1 L H D"], k: Float[Array, "1 L H D"], v: Float[Array, "1 L H D"]
) -> Float[Array, "1 L H D"]:
    """A head and 512 queries at a time, as products of matrices."""
    heads = (x[0].swapaxes(0, 1) for x in (q, k, v))

    def one_head(head: tuple[Array, Array, Array]) -> Array:
        q, k, v = head
        return _in_chunks(q, 512, 0, lambda part: masked_attention(part, k, v, jnp.float32(0)))

    return jax.lax.map(one_head, tuple(heads)).swapaxes(0, 1)[None]


def _by_queries(
    q: Float[Array, "1 L H D"], k: Float[Array, "1 L H D"], v: Float[Array, "1 L H D"]
) -> Float[Array, "1 L H D"]:
    """256 queries of all heads at a time."""
    q, k, v = (x[0].swapaxes(0, 1) for x in (q, k, v))
    out = _in_chunks(q, 256, 1, lambda part: masked_attention(part, k, v, jnp.float32(0)))
    return out.swapaxes(0, 1)[None]


def _in_chunks(x: Array, size: int, axis: int, body: Callable[[Array], Array]) -> Array:
    """Map over runs of an axis, whose length `size`, or all of a shorter axis, divides."""
    chunks = max(1, x.shape[axis] // size)
    parts = jnp.stack(jnp.split(x, chunks, axis=axis))
    out = jax.lax.map(body, parts)
    return jnp.concatenate(list(out), axis=axis)


def _slot(q: Array, k: Array, v: Array) -> Array:
    """What the transformer uses."""
    return dense_attention(q, k, v, jnp.ones(k.shape[:2], jnp.bool_))[0]


_DENSE = {
    "head and 512 queries at a time": _by_head,
    "256 queries of all heads at a time": _by_queries,
    "qsjax.dit.attention.dense_attention": _slot,
}
