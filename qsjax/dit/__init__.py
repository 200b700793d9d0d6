"""HunyuanVideo's diffusion transformer in Flax; it knows neither quantization nor sparsity."""

from qsjax.dit.attention import dense_attention as dense_attention
from qsjax.dit.blocks import Attention as Attention
from qsjax.dit.config import DiTConfig as DiTConfig
from qsjax.dit.loading import load_dit as load_dit
from qsjax.dit.model import DiT as DiT
from qsjax.dit.model import Modulation as Modulation
