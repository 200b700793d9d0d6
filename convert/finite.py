"""Numbers that are none: one NaN among 13 billion weights makes a black video."""

import ml_dtypes
import numpy as np

from qsjax.errors import CheckpointError

_BLOCK = 1 << 18
"""Elements that are looked at twice while they are in the processor's cache."""
# Of each dtype: the unsigned integer as wide, and the bits of infinity. As an integer, a finite number is less than it, and less
# than it with the sign's bit if it is negative: two maxima tell, without a copy.
_INFINITY = {
    np.dtype(np.float64): (np.uint64, 0x7FF0 << 48),
    np.dtype(np.float32): (np.uint32, 0x7F80 << 16),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
}


class WrongWeights(CheckpointError):
    """Weights, or what is made of them, are no numbers or not what they say: what was written of them so far is of no use."""


def count_not_finite(array: np.ndarray) -> int:
    """How many elements are NaN or infinite; 0 for integers. `array` is C-contiguous."""
    if array.dtype not in _INFINITY or array.size == 0:
        return 0
    kind, infinity = _INFINITY[array.dtype]
    unsigned = array.reshape(-1).view(kind)
    signed = unsigned.view(np.dtype(kind).name.removeprefix("u"))
    negative = infinity + (1 << 8 * array.itemsize - 1)
    count = 0
    for start in range(0, array.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        if signed[block].max() >= infinity or unsigned[block].max() >= negative:
            count += int(np.count_nonzero((unsigned[block] & infinity) == infinity))
    return count


def require_finite(array: np.ndarray, what: str, cure: str) -> None:
    """Refuse an array with elements that are NaN or infinite.

    Args:
        array: C-contiguous, of any dtype.
        what: it is, for the message ("FILE: the tensor NAME").
        cure: what to do.

    Raises:
        WrongWeights: it has some; the message says how many.
    """
    if count := count_not_finite(array):
        raise WrongWeights(
            f"{what} has {count} of {array.size} values that are NaN or infinite; {cure}"
        )
