"""Pallas for GPU (Triton): a program takes a tile of queries, walks its list, applies the cache and stores.

Queries, keys and values are read where they are, one head at a time, and are neither transposed nor padded. Only cached
values are transposed, to [B, H, L, D]: the cache is stored in that order, so the two transpositions cancel. A kernel that
read [B, L, H, D] would have XLA transpose the cache of all layers before the loop over layers. A block larger than a tile takes
several steps, so lists of coarse blocks run on the same tiles as lists of fine ones.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array

from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.block_sparse_attention.cache import Cache, Complement
from pallas_kernels.block_sparse_attention.gpu_kernel import GpuKernelConfig, kernel
from pallas_kernels.block_sparse_attention.scores import Int8Scales
from pallas_kernels.block_sparse_attention.softmax import key_bias
from pallas_kernels.gpu_params import needs_gpu, triton_options
from pallas_kernels.refs import Index, Operand
from pallas_kernels.targets import Target

TILE = 128
"""Queries and keys of a tile, unless the blocks are smaller."""


def objection(
    *, backend: str, dtype: DTypeLike, head_dim: int, block_q: int, block_kv: int, **_: object
) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_gpu(backend):
        return reason
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"is for float types, not {jnp.dtype(dtype).name}"
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= TILE:
        return f"head size {head_dim} is not a power of two from 16 to {TILE}"
    if any(block % TILE and (block & (block - 1) or block < 16) for block in (block_q, block_kv)):
        return f"blocks of {block_q} x {block_kv} are neither multiples of {TILE} nor 16, 32 or 64"
    return None


def attend(
    q: Array,
    k: Array,
    v: Array,
    kv_valid: Array,
    blocks: BlockLists,
    cache: Cache | None,
    *,
    scale: float,
    scales: Int8Scales | None = None,
    target: Target,
) -> tuple[Array, Array]:
    """Output in v's dtype, and the log-sum-exp of the listed keys; see `api.block_sparse_attention`."""
    out, lse = launch(q, k, v, kv_valid, blocks, cache, scale=scale, scales=scales, target=target)
    return out, lse


def launch(
    q: Array,
    k: Array,
    v: Array,
    kv_valid: Array,
    blocks: BlockLists,
    cache: Cache | None,
    *,
    scale: float,
    scales: Int8Scales | None = None,
    target: Target,
    count_blocks: bool = False,
) -> tuple[Array, ...]:
    """Run the kernel.

    Args:
        q, k, v, kv_valid, blocks, cache: checked operands.
        scale: of the scores.
        scales: of q and k, where they are int8.
        target: device to build for.
        count_blocks: also return how many tiles of keys each tile of queries was multiplied with, int32 [B, H, tiles].

    Returns:
        Output [B, Q, H, D], log-sum-exp [B, H, Q], and the counts if asked for.
    """
    batch, length, heads, size = q.shape
    keys = k.shape[1]
    tile_q, tile_kv = min(blocks.block_q, TILE), min(blocks.block_kv, TILE)
    tiles, tiles_in_block = pl.cdiv(length, tile_q), blocks.block_q // tile_q
    samples, list_heads = blocks.counts.shape[:2]

    def of_list(i: Array, h: Array, b: Array) -> tuple[Index, Index, Array, int]:
        row = jax.lax.div(i, tiles_in_block)
        return b if samples > 1 else 0, h if list_heads > 1 else 0, row, 0

    tile = pl.BlockSpec((None, tile_q, None, size), lambda i, h, b: (b, i, h, 0))
    row = pl.BlockSpec((None, None, tile_q), lambda i, h, b: (b, h, i))
    whole = pl.BlockSpec((None, keys, None, size), lambda i, h, b: (b, 0, h, 0))
    padded = blocks.kv_blocks * blocks.block_kv
    bias = key_bias(kv_valid, padded)
    listed = blocks.indices.shape[-1]
    operands = {
        "counts": (blocks.counts[..., None], pl.BlockSpec((None, None, None, 1), of_list)),
        "indices": (blocks.indices, pl.BlockSpec((None, None, None, listed), of_list)),
        "q": (q, tile),
        "k": (k, whole),
        "v": (v, whole),
        "bias": (bias, pl.BlockSpec((None, bias.shape[1]), lambda i, h, b: (b, 0))),
        **_cache_operands(cache, row, tile_q),
    }
    if scales is not None:
        k_scale = jnp.pad(scales.k, ((0, 0), (0, 0), (0, padded - keys)))
        by_head = pl.BlockSpec((None, None, k_scale.shape[2]), lambda i, h, b: (b, h, 0))
        operands |= {"q_scale": (scales.q, row), "k_scale": (k_scale, by_head)}
    outputs = {
        "out": (jax.ShapeDtypeStruct(q.shape, v.dtype), tile),
        "lse": (jax.ShapeDtypeStruct((batch, heads, length), jnp.float32), row),
    }
    if count_blocks:
        counter = pl.BlockSpec((None, None, 1), lambda i, h, b: (b, h, i))
        outputs["executed"] = (jax.ShapeDtypeStruct((batch, heads, tiles), jnp.int32), counter)
    config = GpuKernelConfig(
        names=(*operands, *outputs),
        queries=length,
        keys=keys,
        tile_q=tile_q,
        tile_kv=tile_kv,
        parts=blocks.block_kv // tile_kv,
        scale=scale,
        complement=isinstance(cache, Complement),
        follow=cache.follow if isinstance(cache, Complement) else 0.0,
    )
    return pl.pallas_call(
        partial(kernel, config=config),
        out_shape=[shape for shape, _ in outputs.values()],
        grid=(tiles, heads, batch),
        in_specs=[spec for _, spec in operands.values()],
        out_specs=[spec for _, spec in outputs.values()],
        name="block_sparse_attention",
        **triton_options(target, warps=8 if tile_q == TILE else 4, stages=2),
    )(*(array for array, _ in operands.values()))


def _cache_operands(cache: Cache | None, row: pl.BlockSpec, tile_q: int) -> dict[str, Operand]:
    if cache is None:
        return {}
    values = cache.values.swapaxes(1, 2)
    tile = pl.BlockSpec((None, None, tile_q, values.shape[3]), lambda i, h, b: (b, h, i, 0))
    operands = {"values": (values, tile)}
    if cache.scale is not None:
        operands["scale"] = (cache.scale, row)
    if isinstance(cache, Complement):
        operands["cached_lse"] = (cache.lse, row)
    if cache.low_rank is not None:
        u, v = cache.low_rank
        # Tensor cores want a rank that is a power of two, 16 or more.
        rank = max(16, 1 << (u.shape[1] - 1).bit_length())
        u = jnp.pad(u, ((0, 0), (0, rank - u.shape[1]), (0, 0)))
        v = jnp.pad(v, ((0, 0), (0, 0), (0, rank - v.shape[2]), (0, 0)))
        operands["u_factor"] = (u, pl.BlockSpec((None, rank, tile_q), lambda i, h, b: (b, 0, i)))
        by_head = pl.BlockSpec((None, None, rank, v.shape[3]), lambda i, h, b: (b, h, 0, 0))
        operands["v_factor"] = (v, by_head)
    return operands
