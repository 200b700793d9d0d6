"""How many keys a step of the TPU kernel multiplies at once, for each device."""

from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.targets import Target

# By the compiler's estimate a step costs about a thousand cycles, however few keys it multiplies.
_KEYS = {"v5e": 1024, "v6e": 1024}


DENSE_BLOCKS = (1024, 1024)
"""Queries and keys of a block where every block is listed."""


def keys_per_step(target: Target, blocks: BlockLists) -> int:
    """Keys of about as many blocks as the table allows: at least one block, at most the longest list."""
    wanted = min(_KEYS.get(target.name, 512) // blocks.block_kv, blocks.indices.shape[-1])
    return max(1, wanted) * blocks.block_kv


# Keys whose scores become weights at a time: short slices keep a v5e's registers from spilling, a v6e's wide matrix unit wants more.
_SLICES = {"v5e": 128, "v6e": 512}


def keys_per_slice(target: Target, keys: int) -> int:
    """A part of a step's keys: the table's, or the largest half of it that divides them."""
    size = _SLICES.get(target.name, 256)
    while keys % size:
        size //= 2
    return size
