"""Norm, modulation, smoothing, rotation and per-token quantization of activations, in one pass."""

from pallas_kernels.quantize_tokens.api import QUANTIZE_TOKENS as QUANTIZE_TOKENS
from pallas_kernels.quantize_tokens.api import quantize_tokens as quantize_tokens
