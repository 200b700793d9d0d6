"""Float8 numbers: which tensors are of them, and what they are with a scale. There are only 256 codes, so products are looked up."""

import ml_dtypes
import numpy as np

from convert.containers.source import Source
from qsjax.untrusted import Between

FLOAT8 = {np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SCALES = Between(1e-30, 1e30)
"""With these every float8 number is a normal or zero in bfloat16 and float32."""
_CHUNK = 1 << 20  # look-ups widen their indices to 8 bytes; this bounds them to 8 MB


def float8_names(source: Source) -> list[str]:
    """The tensors of a source that are float8."""
    return [name for name, info in source.tensors.items() if info.dtype in FLOAT8]


def widened(stored: np.ndarray, dtype: np.dtype = BFLOAT16) -> np.ndarray:
    """`stored` (float8, any shape) in a wider dtype, exactly."""
    return _looked_up(stored, _codes(stored).astype(dtype))


def scaled(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`stored` (float8, [O, ...]) times `scale` (float32, of one element or [O, 1, ...]), in float32."""
    codes = _codes(stored).astype(np.float32)
    if scale.size == 1:
        return _looked_up(stored, codes * scale.reshape(()))
    result = _looked_up(stored, codes)
    result *= scale
    return result


def dequantize(stored: np.ndarray, scale: float) -> np.ndarray:
    """`stored` (float8, any shape) times `scale`, both rounded to bfloat16 first, in bfloat16."""
    factor = np.asarray(scale, np.float32).astype(BFLOAT16)  # torch goes by way of float32 too
    with np.errstate(over="ignore", invalid="ignore"):
        return _looked_up(stored, np.multiply(_codes(stored).astype(BFLOAT16), factor))


def _codes(stored: np.ndarray) -> np.ndarray:
    return np.arange(256, dtype=np.uint8).view(stored.dtype)


def _looked_up(stored: np.ndarray, table: np.ndarray) -> np.ndarray:
    result = np.empty(stored.shape, table.dtype)
    indices, flat = stored.reshape(-1).view(np.uint8), result.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        flat[start : start + _CHUNK] = table[indices[start : start + _CHUNK]]
    return result
