"""Attention over listed blocks of keys, different for every head, corrected by what a cache keeps of the other blocks."""

from pallas_kernels.block_sparse_attention.api import (
    BLOCK_SPARSE_ATTENTION as BLOCK_SPARSE_ATTENTION,
)
from pallas_kernels.block_sparse_attention.api import (
    attention_with_residual as attention_with_residual,
)
from pallas_kernels.block_sparse_attention.api import (
    block_sparse_attention as block_sparse_attention,
)
from pallas_kernels.block_sparse_attention.blocks import BlockLists as BlockLists
from pallas_kernels.block_sparse_attention.cache import Additive as Additive
from pallas_kernels.block_sparse_attention.cache import Complement as Complement
