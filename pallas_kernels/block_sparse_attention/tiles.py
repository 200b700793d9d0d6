"""How many keys a step of the TPU kernel multiplies at once, for each device, and which steps fetch them in one piece."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.targets import Target

# By the compiler's estimate a step costs some hundred cycles, however few keys it multiplies, and a v6e multiplies fast: there the
# longer steps pay, although more of a list's last one is empty.
_KEYS = {"v5e": 1024, "v6e": 2048}
# With so few queries, as those of a text, a step of a v5e is too short for its copies: they take a sixth of the time.
_FEW_QUERIES, _THEIR_KEYS = 256, 2048


DENSE_BLOCKS = (1024, 1024)
"""Queries and keys of a block where every block is listed."""


def keys_per_step(target: Target, blocks: BlockLists) -> int:
    """Keys of about as many blocks as the table allows: at least one block, at most the longest list.

    More for few queries that may see all keys: shorter lists would leave more of their last step empty.
    """
    keys, longest = _KEYS.get(target.name, 512), blocks.indices.shape[-1]
    if blocks.block_q <= _FEW_QUERIES and longest == blocks.kv_blocks and target.name in _KEYS:
        keys = _THEIR_KEYS
    return max(1, min(keys // blocks.block_kv, longest)) * blocks.block_kv


def steps_apart(blocks: BlockLists, gather: int) -> Int[Array, "B H Q"]:
    """Steps of each row whose blocks do not follow each other, or are too few, and are fetched one by one.

    Args:
        blocks: the lists.
        gather: blocks of a step; a single one is always in one piece.
    """
    counts = jnp.asarray(blocks.counts)
    if gather == 1:
        return jnp.zeros_like(counts)
    steps = -(-counts // gather)
    first = jnp.asarray(blocks.indices)[..., ::gather]
    last = jnp.asarray(blocks.indices)[..., gather - 1 :: gather]
    together = last - first[..., : last.shape[-1]] == gather - 1
    places = jnp.arange(last.shape[-1]).reshape(1, 1, 1, -1)
    whole = places < (counts // gather)[..., None]
    return steps - (together & whole).sum(axis=-1, dtype=counts.dtype)


# Keys whose scores become weights at a time: short slices keep a v5e's registers from spilling, a v6e's wide matrix unit wants more.
_SLICES = {"v5e": 256, "v6e": 1024}


def keys_per_slice(target: Target, keys: int) -> int:
    """A part of a step's keys: the table's, or the largest half of it that divides them."""
    size = _SLICES.get(target.name, 256)
    while keys % size:
        size //= 2
    return size
