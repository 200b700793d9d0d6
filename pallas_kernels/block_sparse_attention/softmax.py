"""What the online softmaxes share, so that all their numbers stay finite."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.block_sparse_attention.cache import EMPTY

LOWEST_PEAK = -1e29
"""Where running maxima start: above the score of a key that is not valid, so that its weight is exp(-9e29) = 0."""

LOG2_E = math.log2(math.e)
"""Turns exponents of e into exponents of 2, which hardware computes."""


def key_bias(kv_valid: Bool[Array, "B L"], padded: int) -> Float[Array, "B P"]:
    """What is added to the scores of each key: 0, or `EMPTY` for one that is not valid or lies behind the last.

    Args:
        kv_valid: keys that may be seen.
        padded: keys in whole blocks.
    """
    bias = jnp.where(kv_valid, jnp.float32(0), jnp.float32(EMPTY))
    return jnp.pad(bias, ((0, 0), (0, padded - bias.shape[1])), constant_values=EMPTY)
