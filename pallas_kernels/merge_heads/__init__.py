"""From heads to tokens: the inverse of `rotary_heads`' layout, for attention's output."""

from pallas_kernels.merge_heads.api import MERGE_HEADS as MERGE_HEADS
from pallas_kernels.merge_heads.api import merge_heads as merge_heads
