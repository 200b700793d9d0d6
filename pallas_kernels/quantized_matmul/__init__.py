"""int8 activations times packed 4-, 6- or 8-bit weights, fused with everything that follows the product in a linear layer."""

from pallas_kernels.quantized_matmul.api import QUANTIZED_MATMUL as QUANTIZED_MATMUL
from pallas_kernels.quantized_matmul.api import quantized_matmul as quantized_matmul
from pallas_kernels.quantized_matmul.packing import PackedWeight as PackedWeight
from pallas_kernels.quantized_matmul.packing import WeightLayout as WeightLayout
from pallas_kernels.quantized_matmul.packing import pack as pack
from pallas_kernels.quantized_matmul.packing import unpack as unpack
