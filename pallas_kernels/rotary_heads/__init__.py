"""From a fused projection to heads: queries and keys normed and rotated, all laid out head by head."""

from pallas_kernels.rotary_heads.api import ROTARY_HEADS as ROTARY_HEADS
from pallas_kernels.rotary_heads.api import arranged_heads as arranged_heads
from pallas_kernels.rotary_heads.api import rotary_heads as rotary_heads
from pallas_kernels.rotary_heads.layout import ArrangedHeads as ArrangedHeads
from pallas_kernels.rotary_heads.layout import HeadLayout as HeadLayout
from pallas_kernels.rotary_heads.reference import Projection as Projection
