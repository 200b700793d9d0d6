"""The operation: shapes, dtypes and checks, and the choice of an implementation."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.block_sparse_attention import gpu, reference, tpu, xla
from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.block_sparse_attention.cache import Cache, Complement, merge
from pallas_kernels.block_sparse_attention.scores import SCORES, quantize
from pallas_kernels.dispatch import AUTO, Implementation, Operation


class WithResidual(NamedTuple):
    """Full attention and its parts.

    Attributes:
        out: attention over all keys, in q's dtype [B, Q, H, D].
        listed: O_S, attention over the listed keys, the same.
        others: O_R, over the keys that are not listed, the same.
        others_lse: their log-sum-exp, float32 [B, H, Q].
        recall: a, the weight of the listed keys, float32 [B, Q, H].
    """

    out: Float[Array, "B Q H D"]
    listed: Float[Array, "B Q H D"]
    others: Float[Array, "B Q H D"]
    others_lse: Float[Array, "B H Q"]
    recall: Float[Array, "B Q H"]


def block_sparse_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    blocks: BlockLists,
    *,
    kv_valid: Bool[Array, "B L"] | None = None,
    scale: float | None = None,
    cache: Cache | None = None,
    scores: str = "float",
    return_lse: bool = False,
    clears: bool = True,
    implementation: str = AUTO,
) -> Array | tuple[Array, Array]:
    """Softmax attention over the listed blocks of keys, corrected by a cache.

    Softmax, log-sum-exp and the cache's arithmetic are float32; products take q's dtype. An empty list gives 0 and
    a log-sum-exp of -1e30. Any length: the last blocks may be partial. Queries may be a part of the sequence: text
    rows, which see everything, are best run as a call of their own; otherwise every list is padded to the length of theirs.

    Args:
        q, k, v: of one dtype; q may have another length.
        blocks: lists of the blocks to compute; as many rows as q has blocks, made for all of k's blocks.
        kv_valid: keys that may be seen; None is all.
        scale: of the scores; None is D^-1/2.
        cache: `Additive` or `Complement`; its tensors have q's shape.
        scores: "float"; or "int8", to round queries and smoothed keys to int8 with a scale for each row. That is faster
            if the matrix unit is faster with int8, and not differentiable.
        return_lse: also return log-sum-exp of the listed keys' scores.
        clears: write zeros over the keys and values that may not be seen, which then may hold anything: zero times a NaN is a
            NaN. A pass over k and v; False leaves it out for those whose padding is finite.
        implementation: "auto" or a name of `BLOCK_SPARSE_ATTENTION.implementations`.

    Returns:
        [B, Q, H, D] in q's dtype, or that and float32 [B, H, Q].

    Raises:
        ValueError: shapes that do not go together.
        UnsupportedError: the implementation cannot serve this call; the message says why.
    """
    if cache is not None:
        _check_cache(cache, q.shape)
    out, lse = _attend(q, k, v, blocks, kv_valid, cache, scale, scores, clears, implementation)
    return (out, lse) if return_lse else out


def attention_with_residual(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    blocks: BlockLists,
    *,
    kv_valid: Bool[Array, "B L"] | None = None,
    scale: float | None = None,
    scores: str = "float",
    clears: bool = True,
    implementation: str = AUTO,
) -> WithResidual:
    """Full attention, and what the listed blocks miss of it, at the cost of one dense pass.

    The listed blocks and the others are computed once each and merged by their log-sum-exp. The first-order residual is
    out - O_S = (1 - a) (O_R - O_S); its right side keeps its digits when a is near 0 or 1.

    Args:
        q, k, v, blocks, kv_valid, scale, scores, clears, implementation: as in `block_sparse_attention`.

    Raises:
        ValueError: shapes that do not go together.
        UnsupportedError: the implementation cannot serve this call; the message says why.
    """
    (listed, listed_lse), (others, others_lse) = (
        _attend(q, k, v, lists, kv_valid, None, scale, scores, clears, implementation)
        for lists in (blocks, blocks.complement())
    )
    out, recall = merge(
        listed.astype(jnp.float32), listed_lse, others.astype(jnp.float32), others_lse
    )
    return WithResidual(out.astype(q.dtype), listed, others, others_lse, recall)


def _attend(
    q: Array,
    k: Array,
    v: Array,
    blocks: BlockLists,
    kv_valid: Array | None,
    cache: Cache | None,
    scale: float | None,
    scores: str,
    clears: bool,
    implementation: str,
) -> tuple[Array, Array]:
    _check(q, k, v, blocks, kv_valid)
    if scores not in SCORES:
        raise ValueError(f"scores {scores!r} are none of {', '.join(SCORES)}")
    if clears and kv_valid is not None:
        k, v = (jnp.where(kv_valid[:, :, None, None], x, 0) for x in (k, v))
    kv_valid = jnp.ones(k.shape[:2], jnp.bool_) if kv_valid is None else kv_valid
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    serve = BLOCK_SPARSE_ATTENTION.serve(
        implementation,
        dtype=q.dtype,
        head_dim=q.shape[-1],
        block_q=blocks.block_q,
        block_kv=blocks.block_kv,
    )
    if scores == "float":
        return serve(q, k, v, kv_valid, blocks, cache, scale=scale)
    q8, k8, scales, product = quantize(q, k, kv_valid)
    shift = scale * product
    if isinstance(cache, Complement):
        cache = dataclasses.replace(cache, lse=cache.lse - shift)
    out, lse = serve(q8, k8, v, kv_valid, blocks, cache, scale=scale, scales=scales)
    return out, lse + shift


def _check(q: Array, k: Array, v: Array, blocks: BlockLists, kv_valid: Array | None) -> None:
    batch, length, heads, size = q.shape
    keys = k.shape[1]
    if (
        k.shape != (batch, keys, heads, size)
        or k.shape != v.shape
        or not q.dtype == k.dtype == v.dtype
    ):
        shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in (q, k, v))
        raise ValueError(f"q, k and v must agree in all but q's length, found {shapes}")
    if kv_valid is not None and kv_valid.shape != (batch, keys):
        raise ValueError(f"kv_valid has shape {kv_valid.shape}, expected {(batch, keys)}")
    rows, columns = -(-length // blocks.block_q), -(-keys // blocks.block_kv)
    if (blocks.q_blocks, blocks.kv_blocks) != (rows, columns):
        raise ValueError(
            f"lists are for {blocks.q_blocks} x {blocks.kv_blocks} blocks; {length} queries and {keys} keys in"
            f" blocks of {blocks.block_q} x {blocks.block_kv} make {rows} x {columns}"
        )
    for name, sizes in (("indices", blocks.indices.shape), ("counts", blocks.counts.shape)):
        if sizes[0] not in (1, batch) or sizes[1] not in (1, heads):
            raise ValueError(
                f"{name} has shape {sizes}, expected 1 or {batch} samples and 1 or {heads} heads"
            )


def _check_cache(cache: Cache, shape: tuple[int, ...]) -> None:
    batch, length, heads, size = shape
    if cache.values.shape != shape:
        raise ValueError(f"cached values have shape {cache.values.shape}, expected {shape}")
    if (cache.scale is not None) != (cache.values.dtype == jnp.int8):
        raise ValueError("cached int8 values need a scale, floats have none")
    rows = {"scale": cache.scale, "lse": cache.lse if isinstance(cache, Complement) else None}
    for name, array in rows.items():
        if array is not None and array.shape != (batch, heads, length):
            raise ValueError(
                f"the cache's {name} has shape {array.shape}, expected {(batch, heads, length)}"
            )
    if cache.low_rank is not None:
        u, v = cache.low_rank
        rank = u.shape[1]
        if u.shape != (batch, rank, length) or v.shape != (batch, heads, rank, size):
            raise ValueError(
                f"low-rank factors {u.shape}, {v.shape}, expected (B, R, L) and (B, H, R, D)"
            )


def _always(**_: object) -> None:
    return None


BLOCK_SPARSE_ATTENTION = Operation(
    "block_sparse_attention",
    {
        "tpu": Implementation(tpu.attend, tpu.objection, tiled=True),
        "gpu": Implementation(gpu.attend, gpu.objection, tiled=True),
        "xla": Implementation(xla.attend, _always),
        "reference": Implementation(reference.attend, _always),
    },
)
