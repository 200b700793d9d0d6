"""How many keys a step of a kernel multiplies at once, for each device."""

from pallas_kernels.block_sparse_attention.blocks import BlockLists
from pallas_kernels.targets import Target

# By the compiler's estimate a step costs about a thousand cycles, whatever it multiplies.
_KEYS = {"v5e": 1024, "v6e": 1024}


def keys_per_step(target: Target, blocks: BlockLists) -> int:
    """Keys in whole blocks: at least one block, no more than the longest list, about what the table says."""
    wanted = min(_KEYS.get(target.name, 512) // blocks.block_kv, blocks.indices.shape[-1])
    return max(1, wanted) * blocks.block_kv
