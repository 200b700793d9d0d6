"""Quantization: recipes, quantizers, transforms that keep the function, and layers with packed integer weights."""

from qsjax.quant.layout import arrange as arrange
from qsjax.quant.layout import device_bytes as device_bytes
from qsjax.quant.linear import JoinedLinear as JoinedLinear
from qsjax.quant.linear import QuantizedLinear as QuantizedLinear
from qsjax.quant.linear import QuantizedTokens as QuantizedTokens
from qsjax.quant.recipe import Override as Override
from qsjax.quant.recipe import Precision as Precision
from qsjax.quant.recipe import Recipe as Recipe
from qsjax.quant.rotation import Rotation as Rotation
from qsjax.quant.sites import SITES as SITES
from qsjax.quant.sites import Site as Site
from qsjax.quant.sites import Transform as Transform
from qsjax.quant.surgery import with_quantized_layers as with_quantized_layers
