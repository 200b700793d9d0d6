"""Pallas for TPU: keys and values stay in HBM, and the kernel fetches the blocks that its list names, one step ahead.

The grid has one step for each block of queries of a head. The loop inside it is as long as the list, so a block
that is not listed costs nothing, not even an empty grid step. Several listed blocks are fetched side by side and
multiplied at once: the matrix unit wants 512 keys or more, lists are often finer. The cache is applied to the float32
result while it is still in vector memory.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array

from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.block_sparse_attention.cache import Cache, Complement
from pallas_kernels.block_sparse_attention.scores import Int8Scales
from pallas_kernels.block_sparse_attention.softmax import key_bias, lengths, score_bound
from pallas_kernels.block_sparse_attention.tiles import keys_per_slice, keys_per_step
from pallas_kernels.block_sparse_attention.tpu_kernel import INDICES, TpuKernelConfig, Trips, kernel
from pallas_kernels.refs import Index, Operand
from pallas_kernels.targets import Target
from pallas_kernels.tpu_params import LANES, VMEM_LIMIT, interpret_params, needs_tpu


def objection(
    *, backend: str, dtype: DTypeLike, head_dim: int, block_q: int, block_kv: int, **_: object
) -> str | None:
    """Why the kernel cannot serve a call."""
    if reason := needs_tpu(backend):
        return reason
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"is for bfloat16 and float32, not {jnp.dtype(dtype).name}"
    if head_dim % LANES:
        return f"head size {head_dim} is not a multiple of {LANES}"
    if block_q % LANES or block_kv % LANES:
        return f"blocks of {block_q} x {block_kv} are not multiples of {LANES}"
    return None


class Arranged(NamedTuple):
    """The operands as the kernel takes them: heads before tokens, whole blocks, vectors over tokens along lanes."""

    lists: (
        Array  # int32 [rows of lists, 1, 2 + K]: a count, the first step to mask, and a list each
    )
    q: Array  # [B, H, Lq, D]
    k: Array  # [B, H, L, D]
    v: Array  # [B, H, L, D]
    bias: Array  # float32 [B, key blocks, block_kv]: 0 or `EMPTY`
    bound: Array  # float32 [B, H, 1, Lq]: no score is larger
    bounded: Array  # int32 [B H, 1, LANES], equal along lanes: whether a head's weights can be relative to it
    cache: Cache | None  # its values [B, H, Lq, D], scale and lse [B, H, 1, Lq], U [B, R, Lq]
    scales: Int8Scales | None = None  # float32 [B, H, 1, Lq] and [B, H, key blocks, block_kv]


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
    gather = keys_per_step(target, blocks) // blocks.block_kv
    arranged = arrange(q, k, v, kv_valid, blocks, cache, scales, gather=gather, scale=scale)
    out, lse = launch(arranged, blocks, gather=gather, scale=scale, target=target)
    length = q.shape[1]
    return out[:, :, :length].transpose(0, 2, 1, 3), lse[:, :, 0, :length]


def arrange(
    q: Array,
    k: Array,
    v: Array,
    kv_valid: Array,
    blocks: BlockLists,
    cache: Cache | None,
    scales: Int8Scales | None = None,
    *,
    gather: int,
    scale: float,
) -> Arranged:
    """Transpose, then pad: XLA copies every operand once, and drops the transposition where the caller's last one was its inverse."""
    rows, columns = blocks.q_blocks * blocks.block_q, blocks.kv_blocks * blocks.block_kv
    bias = key_bias(kv_valid, columns)

    def heads_first(x: Array, length: int) -> Array:
        x = x.transpose(0, 2, 1, 3)
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    def along_lanes(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, rows - x.shape[-1])))

    if cache is not None:
        cache = dataclasses.replace(
            cache,
            low_rank=cache.low_rank and (along_lanes(cache.low_rank[0]), cache.low_rank[1]),
            scale=None if cache.scale is None else along_lanes(cache.scale)[:, :, None],
            values=heads_first(cache.values, rows),
        )
        if isinstance(cache, Complement):
            cache = dataclasses.replace(cache, lse=along_lanes(cache.lse)[:, :, None])
    if scales is not None:
        k_scale = jnp.pad(scales.k, ((0, 0), (0, 0), (0, columns - scales.k.shape[-1])))
        k_scale = k_scale.reshape(*k_scale.shape[:2], blocks.kv_blocks, blocks.block_kv)
        scales = Int8Scales(along_lanes(scales.q)[:, :, None], k_scale)
    bias = bias.reshape(len(bias), blocks.kv_blocks, blocks.block_kv)
    q, k, v = (heads_first(x, length) for x, length in ((q, rows), (k, columns), (v, columns)))
    q_scale, k_scale = (
        (None, None) if scales is None else (scales.q[:, :, 0], scales.k.reshape(*k.shape[:3]))
    )
    bound, fits = score_bound(lengths(q, q_scale), lengths(k, k_scale), scale)
    fits = fits.astype(jnp.int32).reshape(-1, 1, 1)
    bounded = jnp.broadcast_to(fits, (len(fits), 1, LANES))
    return Arranged(
        _lists(blocks, bias, gather), q, k, v, bias, bound[:, :, None], bounded, cache, scales
    )


def launch(
    arranged: Arranged,
    blocks: BlockLists,
    *,
    gather: int,
    scale: float,
    target: Target,
    trips: Trips | None = None,
    count_blocks: bool = False,
) -> tuple[Array, ...]:
    """Run the kernel.

    Args:
        arranged: from `arrange`.
        blocks: the lists that were arranged; only their sizes are used here.
        gather: listed blocks that a step multiplies.
        scale: of the scores.
        target: device to build for.
        trips: run these steps instead of those in the lists, without branches: a compiler's static estimate counts neither
            branches nor loops of unknown length. The result is meaningless.
        count_blocks: also return the number of blocks that each row multiplied, int32 [B, H, query blocks, 1, 1].

    Returns:
        Output [B, H, Lq, D], log-sum-exp [B, H, 1, Lq], and the counts if asked for.
    """
    lists, q, k, v, bias, bound, bounded, cache, scales = arranged
    batch, heads, length, size = q.shape
    rows = blocks.q_blocks
    samples, list_heads = blocks.counts.shape[:2]

    def list_of(b: Array, h: Array, i: Array, ahead: int = 0) -> tuple[Index, int, int]:
        """The row of lists of a block of queries, or of the next block of its head; the last one gets its own again."""
        sample, head = b if samples > 1 else 0, h if list_heads > 1 else 0
        return (sample * list_heads + head) * rows + jnp.minimum(i + ahead, rows - 1), 0, 0

    tile = pl.BlockSpec((None, None, blocks.block_q, size), lambda b, h, i: (b, h, i, 0))
    row = pl.BlockSpec((None, None, 1, blocks.block_q), lambda b, h, i: (b, h, 0, i))
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    of_sample = pl.BlockSpec((None, *bias.shape[1:]), lambda b, h, i: (b, 0, 0))
    flag = pl.BlockSpec(
        (None, 1, LANES), lambda b, h, i: (b * heads + h, 0, 0), memory_space=pltpu.SMEM
    )
    own, following = (
        pl.BlockSpec(
            (None, 1, lists.shape[-1]), partial(list_of, ahead=ahead), memory_space=pltpu.SMEM
        )
        for ahead in (0, 1)
    )
    operands = {
        "lists": (lists, own),
        "next_lists": (lists, following),
        "q": (q, tile),
        "k": (k, in_hbm),
        "v": (v, in_hbm),
        "bias": (bias, of_sample),
        "bound": (bound, row),
        "bounded": (bounded, flag),
    }
    if scales is not None:
        of_head = pl.BlockSpec((None, None, *scales.k.shape[2:]), lambda b, h, i: (b, h, 0, 0))
        operands |= {"q_scale": (scales.q, row), "k_scale": (scales.k, of_head)}
    operands |= _cache_operands(cache, tile, row, blocks.block_q)
    outputs = {
        "out": (jax.ShapeDtypeStruct(q.shape, v.dtype), tile),
        "lse": (jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32), row),
    }
    if count_blocks:
        counter = pl.BlockSpec(
            (None, None, None, 1, 1), lambda b, h, i: (b, h, i, 0, 0), memory_space=pltpu.SMEM
        )
        shape = jax.ShapeDtypeStruct((batch, heads, rows, 1, 1), jnp.int32)
        outputs["executed"] = (shape, counter)
    keys = gather * blocks.block_kv
    scratch = {
        "k_buffer": pltpu.VMEM((2, keys, size), k.dtype),
        "v_buffer": pltpu.VMEM((2, keys, size), v.dtype),
        "m": pltpu.VMEM((1, blocks.block_q), jnp.float32),
        "l": pltpu.VMEM((1, blocks.block_q), jnp.float32),
        "acc": pltpu.VMEM((size, blocks.block_q), jnp.float32),
        "turn": pltpu.SMEM((1,), jnp.int32),
        "semaphores": pltpu.SemaphoreType.DMA((2, 2)),
    }
    config = TpuKernelConfig(
        names=(*operands, *outputs, *scratch),
        block_kv=blocks.block_kv,
        gather=gather,
        scale=scale,
        slice=keys_per_slice(target, keys),
        trips=trips,
        complement=isinstance(cache, Complement),
        follow=cache.follow if isinstance(cache, Complement) else 0.0,
    )
    return pl.pallas_call(
        partial(kernel, config=config),
        out_shape=[shape for shape, _ in outputs.values()],
        grid=(batch, heads, rows),
        in_specs=[spec for _, spec in operands.values()],
        out_specs=[spec for _, spec in outputs.values()],
        scratch_shapes=list(scratch.values()),
        compiler_params=pltpu.CompilerParams(
            # A row fetches for the next one of its head: they run in this order.
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        interpret=interpret_params(target),
        name="block_sparse_attention",
    )(*(array for array, _ in operands.values()))


def _lists(blocks: BlockLists, bias: Array, gather: int) -> Array:
    """A row of int32 for each block of queries: the count, the first step that has keys to mask, and the list.

    The list is padded with its last entry to whole lanes. Keys to mask are those of invalid tokens, mostly padding of text and
    so in the last blocks, and the entries past the count in the last step. Lists that samples share are masked for all of them.
    """
    longest = -(-blocks.indices.shape[-1] // gather) * gather
    width = -(-(INDICES + longest) // LANES) * LANES
    entries = blocks.indices.shape[-1]
    incomplete = (bias < 0).any(axis=-1)  # [B, key blocks]
    if blocks.indices.shape[0] == 1:
        incomplete = incomplete.any(axis=0, keepdims=True)
    incomplete = jnp.broadcast_to(incomplete, (blocks.indices.shape[0], blocks.kv_blocks))
    masked = jax.vmap(lambda blocks, indices: blocks[indices])(incomplete, blocks.indices)
    place = jnp.arange(entries, dtype=jnp.int32)
    steps = (blocks.counts + (gather - 1)) // gather
    first = jnp.where(masked, place // gather, entries).min(axis=-1)
    partial_step = jnp.where(blocks.counts % gather == 0, steps, steps - 1)
    first = jnp.minimum(jnp.minimum(first, partial_step), steps)
    indices = blocks.indices.reshape(-1, 1, entries)
    heads = [part.reshape(-1, 1, 1).astype(jnp.int32) for part in (blocks.counts, first)]
    rows = jnp.concatenate([*heads, indices], axis=-1)
    return jnp.pad(rows, ((0, 0), (0, 0), (0, width - rows.shape[-1])), mode="edge")


def _cache_operands(
    cache: Cache | None, tile: pl.BlockSpec, row: pl.BlockSpec, block_q: int
) -> dict[str, Operand]:
    if cache is None:
        return {}
    operands = {"values": (cache.values, tile)}
    if cache.scale is not None:
        operands["scale"] = (cache.scale, row)
    if isinstance(cache, Complement):
        operands["cached_lse"] = (cache.lse, row)
    if cache.low_rank is not None:
        u, v = cache.low_rank
        rank, size = v.shape[-2:]
        u_spec = pl.BlockSpec((None, rank, block_q), lambda b, h, i: (b, 0, i))
        v_spec = pl.BlockSpec((None, None, rank, size), lambda b, h, i: (b, h, 0, 0))
        operands |= {"u_factor": (u, u_spec), "v_factor": (v, v_spec)}
    return operands
