"""Kernels of qsjax, usable without the rest: named implementations, explicit choice, reasons."""

from pallas_kernels.block_sparse_attention import Additive as Additive
from pallas_kernels.block_sparse_attention import BlockLists as BlockLists
from pallas_kernels.block_sparse_attention import Complement as Complement
from pallas_kernels.block_sparse_attention import attention_with_residual as attention_with_residual
from pallas_kernels.block_sparse_attention import block_sparse_attention as block_sparse_attention
from pallas_kernels.dispatch import UnsupportedError as UnsupportedError
from pallas_kernels.kernels import Kernels as Kernels
from pallas_kernels.kernels import KernelsLike as KernelsLike
from pallas_kernels.merge_heads import merge_heads as merge_heads
from pallas_kernels.quantize_tokens import quantize_tokens as quantize_tokens
from pallas_kernels.quantized_matmul import PackedWeight as PackedWeight
from pallas_kernels.quantized_matmul import pack as pack
from pallas_kernels.quantized_matmul import quantized_matmul as quantized_matmul
from pallas_kernels.quantized_matmul import unpack as unpack
from pallas_kernels.rotary_heads import ArrangedHeads as ArrangedHeads
from pallas_kernels.rotary_heads import HeadLayout as HeadLayout
from pallas_kernels.rotary_heads import Projection as Projection
from pallas_kernels.rotary_heads import arranged_heads as arranged_heads
from pallas_kernels.rotary_heads import rotary_heads as rotary_heads
